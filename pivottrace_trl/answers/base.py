"""What an answer format is."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable


# The end of a response holds its answer; the time a parser takes grows with the square of the length.
MAX_RESPONSE_LENGTH = 5_000
# Answers longer than this are prose or runaway generations; parsing them only costs time.
MAX_ANSWER_LENGTH = 1_000


@dataclass(frozen=True)
class Reading:
    """
    How an answer is understood.

    Attributes:
        label (`str`): the answer as it is kept.
        preview (`str`): what was read, for people; formulas stand between dollar signs.
    """

    label: str
    preview: str


@runtime_checkable
class AnswerFormat(Protocol):
    """
    Owns what an answer is: how it is found in a completion, read, compared, shown, and turned into the type of the
    label column. Votes, pseudo-labels, annotators, imports, the desk and the triage all go through it. Subclass
    [`TextFormat`] for one of your own.

    Attributes:
        name (`str`): kept in the ledger. The command line loads a format of yours where the user names it, so that
            it must be `package.module:attribute`.
    """

    name: str

    def extract(self, completion: str) -> str | None:
        """The final answer of a completion, as written; `None` if there is none."""
        ...

    def read(self, text: str) -> Reading:
        """
        Check and normalise an answer that a person typed, a file holds, or a model replied.

        Raises:
            ValueError: if it is no answer in this format, or not the whole of it is.
        """
        ...

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether the second answer is right where the first is the label."""
        ...

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """
        The value of an answer for the label column.

        Args:
            answer (`str`): the answer.
            feature (`datasets.Value` or `datasets.ClassLabel`, *optional*): type of the column. Defaults to a string.

        Raises:
            ValueError: if the answer does not fit the type.
        """
        ...


def check_length(answer: str) -> None:
    """Raise `ValueError` if a text is too long for an answer, or UTF-8, and with it a file, cannot hold it."""
    if len(answer) > MAX_ANSWER_LENGTH:
        raise ValueError(f"the answer has {len(answer):,} characters, more than {MAX_ANSWER_LENGTH:,}")
    if any("\ud800" <= character <= "\udfff" for character in answer):
        raise ValueError("the answer holds half a character (a lone surrogate)")


def to_fraction(text: str) -> Fraction:
    """The value of a plain number: `1,234.5`, `-3`, `3/4`; raises `ValueError` for anything else."""
    try:
        return Fraction(text.strip().replace(",", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text[:80]!r} is no plain number") from None


def to_type(answer: str, feature: Any) -> Any:
    """An answer in the type of a column; raises `ValueError` if it does not fit."""
    if feature is None:
        return answer
    import pyarrow as pa
    from datasets import ClassLabel, Value  # where labels have a type, they are loaded

    if isinstance(feature, ClassLabel):
        return feature.str2int(answer)
    if not isinstance(feature, Value):
        raise ValueError(f"the answer {answer[:80]!r} is a text, but the label column holds {feature}")
    if pa.types.is_string(feature.pa_type) or pa.types.is_large_string(feature.pa_type):
        return answer
    number = to_fraction(answer)
    if pa.types.is_integer(feature.pa_type):
        if number.denominator != 1:
            raise ValueError(f"{answer[:80]!r} is not whole, but the label column holds {feature.dtype}")
        value: int | float = int(number)
    elif pa.types.is_floating(feature.pa_type):
        value = float(number)
    else:
        raise ValueError(f"the answer {answer[:80]!r} does not fit a label column of {feature.dtype}")
    try:
        return pa.scalar(value, feature.pa_type).as_py()
    except (pa.ArrowInvalid, OverflowError) as error:
        raise ValueError(f"{answer[:80]!r} does not fit {feature.dtype}: {error}") from None
