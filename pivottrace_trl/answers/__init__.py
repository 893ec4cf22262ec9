"""Final answers in free text: how they are found, read, compared and voted on."""

from .mathematics import Reading
from .reader import AnswerReader
from .vote import Vote, are_equivalent, as_label, extract_answer, is_correct, majority_vote, read_answer, vote_on


__all__ = [
    "AnswerReader",
    "Reading",
    "Vote",
    "are_equivalent",
    "as_label",
    "extract_answer",
    "is_correct",
    "majority_vote",
    "read_answer",
    "vote_on",
]
