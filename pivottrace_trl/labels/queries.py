"""The types at the ledger's interface: queries, answers, opinions, outcomes, and oracles."""

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


# Made once, as making an encoder takes longer than writing a label.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True).encode


@dataclass(frozen=True, slots=True)
class Query:
    """
    A request for the label of one prompt.

    Attributes:
        prompt_id (`str`): id of the prompt.
        prompt (`str` or `None`): text of the prompt, for people.
        purpose (`str`): `"probe"` or `"annotate"`.
        route (`str` or `None`): route of the prompt when the label was asked for.
        score (`float` or `None`): uncertainty score of the prompt at that time.
        suggestion (`str` or `None`): the policy's own answer at that time.
        agreement (`float` or `None`): share of the latest group that gave the suggestion, in `(0, 1]`.
        value (`float` or `None`): value of the label, see [`label_value`]. The queue is ordered by it if it is known.
        opinions (`tuple[Opinion, ...]`): what annotators said who did not settle the question, oldest first. Filled in
            by [`AnnotationLedger.buy`].
        row (`dict[str, Any]`): all that a function or an endpoint may see of the prompt: `prompt` and the free
            columns. Filled in by [`AnnotationLedger.buy`]; the ledger does not store it.
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
    The answer of an annotator.

    Attributes:
        prompt_id (`str`): id of the prompt.
        label (`Any`): the answer. A text or a number is read with the answer format by [`AnnotationLedger.buy`]; a
            dictionary, label column -> value, is stored as it is; `None` means that the annotator has no answer.
        author (`str`): name of the annotator.
        price (`float`): cost in the user's currency, besides the cost of [`Opinion`]s on the prompt.
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
    What one of several annotators said. It is recorded with its price but settles nothing: the question stays open,
    and the next annotator finds the opinion in the query.

    Attributes:
        prompt_id (`str`): id of the prompt.
        label (`str` or `None`): the answer as the answer format reads it; `None` if there is none.
        author (`str`): name of the annotator.
        price (`float`): cost in the user's currency.
        has_failed (`bool`): whether the annotator was paid but returned nothing, and may be asked again.
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
            f"The label {said.label!r:.100} of prompt {said.prompt_id!r} by {said.author!r:.100} cannot be stored "
            f"({str(error)[:100]}). A label consists of texts, numbers and lists, without half characters (lone "
            "surrogates), NaN or infinity."
        ) from error


class Outcome(str, Enum):
    """What happened to an answer."""

    RECORDED = "recorded"
    DECLINED = "declined"
    """The annotator has no answer. This costs nothing of the budget, and the label is not asked for again."""
    DUPLICATE = "duplicate"
    """The same answer was recorded before. Nothing is done."""
    CONFLICT = "conflict"
    """The prompt already has another answer, which was paid for. This one is stored, but not used."""
    OVER_BUDGET = "over budget"
    """The budget is spent. The ledger stores who answered, but not the answer, as nobody paid for it."""
    OPINION = "opinion"
    """The opinion of one of several annotators. It is stored with its price, and settles nothing."""
    UNKNOWN = "unknown prompt"
    """The prompt is not in the pool, and nobody asked for it. Nothing is done."""


@runtime_checkable
class Oracle(Protocol):
    """
    A source of labels: the label column of a dataset, a function, an endpoint, or people. Only
    [`AnnotationLedger.buy`] asks it.

    Attributes:
        batch_size (`int`): largest number of queries per call of `ask`.
    """

    batch_size: int

    def ask(self, queries: Sequence[Query]) -> "Iterable[Answer | Opinion]":
        """
        Answer queries, in any order. Queries that get no answer stay in the queue, even if there are opinions on them.

        Args:
            queries (`Sequence[Query]`):
                The queries, with the `row` of each prompt.

        Returns:
            `Iterable[Answer | Opinion]`: the items of a list are recorded together; those of a generator one by one,
            so that an interruption loses none of them.
        """
        ...


def is_empty(value: Any) -> bool:
    """Whether a label is empty: `None`, NaN, white space, or a list or dictionary of such values."""
    if isinstance(value, dict):
        return all(is_empty(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_empty(item) for item in value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value  # NaN


def as_written(value: Any) -> Any:
    """A number (also NumPy's) as text, since verifiers read texts only. Anything else is returned unchanged."""
    if isinstance(value, str):
        return value
    if isinstance(value, Rational) and not isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool) and value == value
    return f"{Decimal(str(value)):f}" if is_number else value


def read_label(answer: Answer, answer_format: AnswerFormat) -> Any:
    """The label of an answer as the answer format reads it; a dictionary unchanged; `None` if it cannot be read."""
    label = None if is_empty(answer.label) else as_written(answer.label)
    if isinstance(label, str):
        try:
            return answer_format.read(label).label
        except ValueError as error:
            logger.warning("An answer of %s to prompt %s is not used: %s", answer.author, answer.prompt_id, error)
            return None
    return label
