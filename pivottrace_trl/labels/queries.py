"""What crosses the ledger's doorway: queries, answers, outcomes, and whoever answers."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from numbers import Rational, Real
from typing import Any, Protocol, runtime_checkable

from ..answers import AnswerFormat


logger = logging.getLogger(__name__)


# Made once: an encoder takes longer to make than a label to write.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True).encode


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
        opinions (`tuple[Opinion, ...]`): what those said who were asked before and did not settle it, oldest first.
            Filled in by [`AnnotationLedger.buy`].
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
    opinions: "tuple[Opinion, ...]" = ()
    row: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What an annotator said.

    Attributes:
        prompt_id (`str`): the prompt.
        label (`Any`): the answer, a text or a number, which [`AnnotationLedger.buy`] reads by the answer format; or
            a dictionary, label column -> value, which is kept as it stands; `None` if the annotator has no answer.
        author (`str`): who said it.
        price (`float`): what it cost, in the user's currency, beyond what [`Opinion`]s on it cost.
    """

    prompt_id: str
    label: Any
    author: str
    price: float = 0.0

    def __post_init__(self) -> None:
        _check_said(self)


@dataclass(frozen=True)
class Opinion:
    """
    What one of several annotators said. It is recorded with its price and settles nothing: the question stays open,
    and whoever is asked next finds it in the query.

    Attributes:
        prompt_id (`str`): the prompt.
        label (`str` or `None`): the answer as the answer format reads it; `None` if there is none.
        author (`str`): who said it.
        price (`float`): what it cost, in the user's currency.
        has_failed (`bool`): whether the annotator was paid and said nothing, and may be asked again.
    """

    prompt_id: str
    label: str | None
    author: str
    price: float = 0.0
    has_failed: bool = False

    def __post_init__(self) -> None:
        _check_said(self)


def _check_said(said: Answer | Opinion) -> None:
    if not 0.0 <= said.price < math.inf:
        raise ValueError(f"`price` is {said.price!r}, but must be a number of at least 0.")
    try:
        label = said.label if isinstance(said.label, str) else _encode(as_written(said.label))
        f"{label}{said.author}".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The label {said.label!r:.100} of prompt {said.prompt_id!r} by {said.author!r:.100} cannot be kept "
            f"({str(error)[:100]}). A label is made of texts, numbers and lists, without half characters (lone "
            "surrogates), NaN and infinity."
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
    OPINION = "opinion"
    """One of several annotators said it: it is kept with its price, and settles nothing."""
    UNKNOWN = "unknown prompt"
    """It is no prompt of the pool, and nobody asked for it: nothing is done."""


@runtime_checkable
class Oracle(Protocol):
    """
    Whoever knows the labels: the label column of a dataset, a function, an endpoint, people. Only
    [`AnnotationLedger.buy`] asks.

    Attributes:
        batch_size (`int`): most queries it wants at a time.
    """

    batch_size: int

    def ask(self, queries: Sequence[Query]) -> "Iterable[Answer | Opinion]":
        """
        Answer queries, in any order. What is left out stays in the queue, also if there are opinions on it.

        Args:
            queries (`Sequence[Query]`):
                What is asked for, with the `row` of each prompt.

        Returns:
            `Iterable[Answer | Opinion]`: a list is recorded at once; what a generator yields is recorded as it comes,
            so that an interruption loses none of it.
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
    if isinstance(value, str):
        return value
    if isinstance(value, Rational) and not isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool) and value == value
    return f"{Decimal(str(value)):f}" if is_number else value


def read_label(answer: Answer, answer_format: AnswerFormat) -> Any:
    """The label of an answer as the answer format reads it, a dictionary as it is; `None` if it cannot be read."""
    label = None if is_empty(answer.label) else as_written(answer.label)
    if isinstance(label, str):
        try:
            return answer_format.read(label).label
        except ValueError as error:
            logger.warning("An answer of %s to prompt %s is not used: %s", answer.author, answer.prompt_id, error)
            return None
    return label
