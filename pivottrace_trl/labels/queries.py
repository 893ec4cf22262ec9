"""What crosses the ledger's doorway: queries, answers, outcomes, and whoever answers."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from numbers import Rational, Real
from typing import Any, Protocol, runtime_checkable


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
        agreement (`float` or `None`): share of the latest group behind the suggestion, in `(0, 1]`.
        value (`float` or `None`): what a label is worth. The queue is ordered by it, where it is known.
        row (`dict[str, Any]`): what a function or an endpoint may know of the prompt, and nothing else: `prompt` and
            the free columns. Filled in by [`AnnotationLedger.buy`]; the ledger does not keep it.
    """

    prompt_id: str
    prompt: str | None = None
    purpose: str = "annotate"
    route: str | None = None
    score: float | None = None
    suggestion: str | None = None
    agreement: float | None = None
    value: float | None = None
    row: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Opinion:
    """
    What one of several annotators said, from which an answer came, or none.

    Attributes:
        author (`str`): who said it.
        label (`Any`): a text, a number, or `None` for no answer.
        price (`float`): what it cost, in the user's currency.
    """

    author: str
    label: Any
    price: float = 0.0

    def __post_init__(self) -> None:
        _check_price(self.price)
        _check_label(self.label, f"by {self.author!r:.100}", self.author)


@dataclass(frozen=True)
class Answer:
    """
    What an annotator said.

    Attributes:
        prompt_id (`str`): the prompt.
        label (`Any`): the answer, a text or a number, which [`AnnotationLedger.buy`] reads by the answer format; or
            a dictionary, label column -> value, which is kept as it stands; `None` if the annotator has no answer.
        author (`str`): who said it.
        price (`float`): what it cost, in the user's currency, without that of the opinions.
        opinions (`tuple[Opinion, ...]`): what each of several annotators said, if it comes from several.
    """

    prompt_id: str
    label: Any
    author: str
    price: float = 0.0
    opinions: tuple[Opinion, ...] = ()

    def __post_init__(self) -> None:
        _check_price(self.price)
        _check_label(self.label, f"of prompt {self.prompt_id!r} by {self.author!r:.100}", self.author)

    @property
    def total_price(self) -> float:
        """What it cost, opinions included."""
        return self.price + sum(opinion.price for opinion in self.opinions)


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
    """It is no prompt of the pool, and nobody asked for it: nothing is done."""


def _check_price(price: float) -> None:
    if not 0.0 <= price < math.inf:
        raise ValueError(f"`price` is {price!r}, but must be a number of at least 0.")


def _check_label(label: Any, whose: str, author: str) -> None:
    try:
        f"{label}{author}".encode()
        json.dumps(as_written(label), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The label {label!r:.100} {whose} cannot be kept ({str(error)[:100]}). A label is made of texts, numbers "
            "and lists, without half characters (lone surrogates), NaN and infinity."
        ) from error


@runtime_checkable
class Oracle(Protocol):
    """
    Whoever knows the labels: the label column of a dataset, a function, an endpoint, people. Only
    [`AnnotationLedger.buy`] asks.

    Attributes:
        batch_size (`int`): most queries it wants at a time.
    """

    batch_size: int

    def ask(self, queries: Sequence[Query]) -> Iterable[Answer]:
        """
        Answer queries, in any order. What is left out stays in the queue.

        Args:
            queries (`Sequence[Query]`):
                What is asked for, with the `row` of each prompt.

        Returns:
            `Iterable[Answer]`: a list is recorded at once; what a generator yields is recorded as it comes, so that an
            interruption loses none of it.
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


def as_written(value: Any) -> Any:
    """A number, NumPy's too, as it is written: a verifier of texts reads no other. Anything else as it is."""
    if isinstance(value, Rational) and not isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool) and value == value
    return f"{Decimal(str(value)):f}" if is_number else value
