"""
Final answers in free text: extraction, equivalence and majority vote. Whatever a model writes, every call returns in
bounded time and memory: the mathematics is done in a process of its own, one for each process that reads answers.
"""

import atexit
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .mathematics import Reading
from .reader import AnswerReader


# Seconds of a vote after which answers are compared as they are written. A common vote takes hundredths of a second.
_VOTE_SECONDS = 10.0

_reader = AnswerReader()
atexit.register(_reader.close)


def extract_answer(response: str) -> str | None:
    r"""
    Extract the final answer of a response: what stands in `\boxed{}`, else the last formula or number. Only the last
    5,000 characters of the response are read.

    Args:
        response (`str`):
            Text of the response.

    Returns:
        `str` or `None`: the answer as written, or `None` if there is none, or none that can be read in time.

    Example:
    ```python
    >>> extract_answer(r"2 + 2 is \boxed{4}.")
    '4'
    ```
    """
    return _reader.extract(response)


def as_label(answer: str) -> str:
    r"""
    Write an answer so that `accuracy_reward` reads it as a whole. Outside math mode math-verify sees nothing in
    `\sqrt{2}` and `(1,2)`, a 2 in `2\pi` and the last value only in `1, 2`: whatever is no plain number is set in math
    mode. Dollar signs before amounts, which end math mode, are left out.

    Args:
        answer (`str`):
            Answer as extracted or typed.

    Returns:
        `str`: the same answer, usable as the value of a label column.
    """
    return _reader.as_label(answer)


def read_answer(text: str) -> Reading:
    r"""
    Check and normalise what a person typed, so that `accuracy_reward` understands it.

    Args:
        text (`str`):
            A number, formula, tuple, interval or set; `\boxed{}` and GSM8K's `####` may stand around it.

    Returns:
        [`Reading`]

    Raises:
        ValueError: if there is nothing in it, or nothing that math-verify can read in time.
    """
    return _reader.read(text)


def is_correct(response: str, label: str) -> bool:
    """
    Whether the final answer of a response equals the label.

    Args:
        response (`str`):
            Text of the response.
        label (`str`):
            Gold answer; of a text with `####` (GSM8K) the part behind it.

    Returns:
        `bool`: `False` also if that cannot be told in time.
    """
    return _reader.is_correct(response, label)


def are_equivalent(first: str, second: str) -> bool:
    """
    Whether two answers mean the same, whichever comes first.

    Args:
        first (`str`): one answer.
        second (`str`): another answer.

    Returns:
        `bool`: `False` also if that cannot be told in time.
    """
    return _reader.are_equivalent(first, second)


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


def majority_vote(responses: Sequence[str], extract: Callable[[str], str | None] = extract_answer) -> Vote:
    """
    Vote over the final answers of a group.

    Args:
        responses (`Sequence[str]`):
            Texts of the rollouts of one prompt.
        extract (`Callable[[str], str | None]`, *optional*, defaults to [`extract_answer`]):
            How to find the answer in a response.

    Returns:
        [`Vote`]; of two equally large clusters the one that was seen first wins.
    """
    return vote_on([extract(response) for response in responses])


def vote_on(answers: Sequence[str | None]) -> Vote:
    """
    Vote over answers, see [`majority_vote`].

    Args:
        answers (`Sequence[str | None]`):
            Final answer of each rollout of one prompt; `None` where there is none.

    Returns:
        [`Vote`]
    """
    end = time.monotonic() + _VOTE_SECONDS

    def is_same(first: str, second: str) -> bool:
        return first == second or (time.monotonic() < end and are_equivalent(first, second))

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
