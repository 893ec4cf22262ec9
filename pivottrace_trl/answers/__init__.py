"""Final answers in free text: how they are found, read, compared and voted on."""

from .base import AnswerFormat, Reading
from .format import MathFormat, check_name, format_of_ledger, resolve_format
from .plain import ChoiceFormat, NumberFormat, TextFormat
from .reader import AnswerReader
from .vote import Vote, is_correct, majority_vote, vote_on


__all__ = [
    "AnswerFormat",
    "AnswerReader",
    "ChoiceFormat",
    "MathFormat",
    "NumberFormat",
    "Reading",
    "TextFormat",
    "Vote",
    "check_name",
    "format_of_ledger",
    "is_correct",
    "majority_vote",
    "resolve_format",
    "vote_on",
]
