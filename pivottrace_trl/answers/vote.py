"""Majority votes over the final answers of a group."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .base import AnswerFormat
from .format import resolve_format


# Seconds of a vote after which answers are compared as they are written. A common vote takes hundredths of a second.
_VOTE_SECONDS = 10.0


def is_correct(response: str, label: str, answer_format: AnswerFormat | str = "math") -> bool:
    """
    Whether the final answer of a response equals the label.

    Args:
        response (`str`):
            Text of the response.
        label (`str`):
            Gold answer; of a text with `####` (GSM8K) the part behind it. One that the format cannot read is compared
            as it is written.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answer and compares it.

    Returns:
        `bool`: `False` also if that cannot be told in time.
    """
    answer_format = resolve_format(answer_format)
    answer = answer_format.extract(response)
    if answer is None:
        return False
    gold = label.rsplit("####", 1)[-1].strip()
    try:
        return answer_format.are_equivalent(answer_format.read(gold).label, answer)
    except ValueError:
        return answer.strip() == gold


@dataclass(frozen=True)
class Vote:
    """
    Outcome of a majority vote.

    Attributes:
        answer (`str` or `None`): the majority answer as first written, `None` if no response has an answer.
        agreement (`float`): share of all responses that gave it, in `[0, 1]`; responses without an answer count.
        members (`tuple[int, ...]`): which responses gave it.
    """

    answer: str | None
    agreement: float
    members: tuple[int, ...]


def majority_vote(responses: Sequence[str], answer_format: AnswerFormat | str = "math") -> Vote:
    """
    Vote over the final answers of a group.

    Args:
        responses (`Sequence[str]`):
            Texts of the rollouts of one prompt.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answers and compares them.

    Returns:
        [`Vote`]; of two equally large clusters the one that was seen first wins.
    """
    answer_format = resolve_format(answer_format)
    return vote_on([answer_format.extract(response) for response in responses], answer_format)


def vote_on(answers: Sequence[str | None], answer_format: AnswerFormat) -> Vote:
    """
    Vote over answers, see [`majority_vote`].

    Args:
        answers (`Sequence[str | None]`):
            Final answer of each rollout of one prompt; `None` where there is none.
        answer_format ([`AnswerFormat`]):
            Compares them.

    Returns:
        [`Vote`]
    """
    end = time.monotonic() + _VOTE_SECONDS

    def is_same(first: str, second: str) -> bool:
        return first == second or (time.monotonic() < end and answer_format.are_equivalent(first, second))

    clusters: list[tuple[str, list[int]]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for representative, members in clusters:
            if is_same(representative, answer):
                members.append(index)
                break
        else:
            clusters.append((answer, [index]))
    if not clusters:
        return Vote(None, 0.0, ())
    answer, members = max(clusters, key=lambda cluster: len(cluster[1]))
    return Vote(answer, len(members) / len(answers), tuple(members))
