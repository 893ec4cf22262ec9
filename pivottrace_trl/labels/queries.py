"""What crosses the ledger's doorway: queries, answers, outcomes, and whoever answers."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Query:
    """
    One prompt whose label is wanted.

    Attributes:
        prompt_id (`str`): its id.
        prompt (`str` or `None`): its text, for people.
        purpose (`str`): `"probe"` or `"annotate"`.
        route (`str` or `None`): route of the prompt when the label was asked for.
        score (`float` or `None`): its uncertainty then.
        suggestion (`str` or `None`): the policy's own answer then.
    """

    prompt_id: str
    prompt: str | None = None
    purpose: str = "annotate"
    route: str | None = None
    score: float | None = None
    suggestion: str | None = None


@dataclass(frozen=True)
class Answer:
    """
    What an annotator said.

    Attributes:
        prompt_id (`str`): the prompt.
        label (`dict[str, Any]` or `None`): label column -> value; `None` if the annotator has no answer.
        author (`str`): who said it.
        price (`float`): what it cost, in the user's currency.
    """

    prompt_id: str
    label: dict[str, Any] | None
    author: str
    price: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.price < math.inf:
            raise ValueError(f"`price` is {self.price!r}, but must be a number of at least 0.")
        try:
            f"{self.label}{self.author}".encode()
            json.dumps(self.label, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"The label {self.label!r:.100} of prompt {self.prompt_id!r} by {self.author!r:.100} cannot be kept "
                f"({str(error)[:100]}). A label is a dictionary of texts, numbers and lists, without half characters "
                "(lone surrogates), NaN and infinity."
            ) from error


class Outcome(str, Enum):
    """What became of an answer."""

    RECORDED = "recorded"
    DECLINED = "declined"
    """The annotator has no answer. It costs nothing of the budget and is not asked for again."""
    DUPLICATE = "duplicate"
    """The same answer was recorded before: nothing is done."""
    CONFLICT = "conflict"
    """Another answer stands, which was paid for: this one is kept in the ledger, but not used."""
    OVER_BUDGET = "over budget"
    """The budget is spent: the ledger keeps who answered, but not what they said, which nobody paid for."""
    UNKNOWN = "unknown prompt"
    """Nobody asked for this prompt: nothing is done."""


class Oracle(Protocol):
    """Whoever knows the labels."""

    def ask(self, prompt_ids: Sequence[str]) -> Iterable[Answer]:
        """
        Return an answer for each prompt, in any order. The answers of a list are recorded at once, those of a
        generator one by one as they come, so that an interruption loses none.
        """
        ...


def is_empty(value: Any) -> bool:
    """Whether there is nothing in a label: `None`, NaN, white space, or a list or dictionary of nothing else."""
    if isinstance(value, dict):
        return all(is_empty(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_empty(item) for item in value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value  # NaN
