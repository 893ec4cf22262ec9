"""Majority vote over the final answers of a group."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from .base import AnswerFormat
from .format import resolve_format
from .reader import default_reader


# Seconds after which a vote compares no further answers. A typical vote takes milliseconds.
_VOTE_SECONDS = 10.0


def is_correct(response: str, label: str) -> bool:
    """
    Whether the final answer of a response, read as mathematics, equals the label.

    Args:
        response (`str`):
            Text of the response.
        label (`str`):
            Gold answer. In a text with `####` (GSM8K) only the part after it counts.

    Returns:
        `bool`: `False` also if the comparison does not finish in time.
    """
    return default_reader.is_correct(response, label)


@dataclass(frozen=True)
class Vote:
    """
    Outcome of a majority vote.

    Attributes:
        answer (`str` or `None`): the majority answer as first written; `None` if no response has an answer.
        agreement (`float`): share of all responses that gave the majority answer, in `[0, 1]`. Responses without an
            answer count in the denominator.
        members (`tuple[int, ...]`): indices of the responses that the verifier rewards for this answer. They are those
            that gave it, and those of which the verifier reads a part, such as the 18 of `18 eggs`. The latter do not
            count for the agreement.
        sizes (`tuple[int, ...]`): number of responses that gave each distinct answer, largest first.
    """

    answer: str | None
    agreement: float
    members: tuple[int, ...]
    sizes: tuple[int, ...] = ()


def majority_vote(responses: Sequence[str], answer_format: AnswerFormat | str = "math") -> Vote:
    """
    Vote over the final answers of a group.

    Args:
        responses (`Sequence[str]`):
            Texts of the rollouts of one prompt.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answers and compares them.

    Returns:
        [`Vote`]: between two answers with equally many votes, the one that was given first wins.
    """
    answer_format = resolve_format(answer_format)
    return vote_on([answer_format.extract(response) for response in responses], answer_format)


def vote_on(answers: Sequence[str | None], answer_format: AnswerFormat) -> Vote:
    """
    Vote over the final answers of a group (`None` for a response without one); see [`majority_vote`]. The first answer
    of the majority becomes the label, so the verifier must agree with the vote: it must accept the majority's answers
    for each other, and must not accept any other answer for the label. Otherwise there is no majority. An answer that
    the verifier does not read completely is not a vote.
    """
    end = time.monotonic() + _VOTE_SECONDS
    counts = Counter(answer for answer in answers if answer is not None)

    def pays(label: str, answer: str) -> bool:
        return time.monotonic() < end and answer_format.are_equivalent(label, answer)

    # A label that is not even equal to itself was not read completely.
    labels = [answer for answer in counts if pays(answer, answer)]
    left = {label: counts[label] for label in labels}
    sizes: list[int] = []

    def next_cluster() -> list[str]:
        label = next(iter(left))
        cluster = [answer for answer in left if pays(label, answer)] or [label]
        sizes.append(sum(left.pop(answer) for answer in cluster))
        return cluster

    majority: list[str] = []
    num_votes = 0
    while sum(left.values()) > num_votes:
        cluster = next_cluster()
        if sizes[-1] > num_votes:
            majority, num_votes = cluster, sizes[-1]
    is_sound = all(pays(label, answer) for label, answer in permutations(majority, 2))
    is_alone = not any(pays(majority[0], answer) for answer in labels if answer not in majority)
    members: tuple[int, ...] = ()
    if majority and is_sound and is_alone and time.monotonic() < end:
        # The verifier reads only the 18 of `18\text{ eggs}`: the response is rewarded with the others, but no vote.
        paid = majority + [answer for answer in counts if answer not in labels and pays(majority[0], answer)]
        members = tuple(index for index, answer in enumerate(answers) if answer in paid)
    # Minority answers are compared last, as the vote does not depend on them.
    while left:
        next_cluster()
    sizes.sort(reverse=True)
    if not members:
        return Vote(None, 0.0, (), tuple(sizes))
    return Vote(majority[0], num_votes / len(answers), members, tuple(sizes))


def check_agreement(min_agreement: float) -> None:
    """Raise `ValueError` unless this is a share that only one answer can reach."""
    if not 0.5 < min_agreement <= 1.0:
        raise ValueError(
            f"`min_agreement` is {min_agreement!r}, but must be a share of the votes above 0.5, so that two answers "
            "cannot both reach it, and at most 1. `0.6` is a plain majority of up to five votes, `1.0` asks for all."
        )


def decide(
    answers: Sequence[str | None], num_voters: int, min_agreement: float, answer_format: AnswerFormat
) -> Vote | None:
    """
    The vote of `num_voters`, as soon as the answers so far settle it. It has the majority's answer if its share of all
    voters reaches `min_agreement`, and no answer if no answer can reach that any more. `None` while it is open.
    """
    if num_voters == 1 and answers:
        return Vote(answers[0], float(answers[0] is not None), (0,))
    needed = math.ceil(min_agreement * num_voters - 1e-9)
    num_left = num_voters - len(answers)
    vote = vote_on(answers, answer_format) if answers else Vote(None, 0.0, ())
    num_votes = round(vote.agreement * len(answers))
    if vote.answer is not None and num_votes >= needed:
        return vote
    # If there is no majority because two answers cannot be told apart, a third answer may still become one.
    most = num_votes if vote.answer is not None else sum(answer is not None for answer in answers)
    return None if num_left > 0 and most + num_left >= needed else Vote(None, 0.0, ())
