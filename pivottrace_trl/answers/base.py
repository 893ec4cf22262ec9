"""What an answer format is."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable


# Characters. The answer is at the end of a response, and parsing time grows with the square of the length.
MAX_RESPONSE_LENGTH = 5_000
# Characters. Longer answers are prose or runaway generations, and parsing them only costs time.
MAX_ANSWER_LENGTH = 1_000


@dataclass(frozen=True)
class Reading:
    """
    How an answer was understood.

    Attributes:
        label (`str`): the answer as it is stored.
        preview (`str`): the answer as people see it; formulas are between dollar signs.
    """

    label: str
    preview: str


@runtime_checkable
class AnswerFormat(Protocol):
    """
    Defines what an answer is: how it is found in a completion, read, compared, shown, and converted to the type of the
    label column. Votes, pseudo-labels, annotators, imports, the desk and triage all use it. To write your own format,
    subclass [`TextFormat`].

    Attributes:
        name (`str`): stored in the ledger. The command line imports your own format by this name, so it must have the
            form `package.module:attribute`.
    """

    name: str

    def extract(self, completion: str) -> str | None:
        """
        Find the final answer of a completion.

        Args:
            completion (`str`): text of the completion.

        Returns:
            `str` or `None`: the answer as written; `None` if there is none.
        """
        ...

    def read(self, text: str) -> Reading:
        """
        Check and normalise an answer from a person, a file or a model.

        Args:
            text (`str`): the answer as it arrived.

        Returns:
            [`Reading`]

        Raises:
            ValueError: if the text, or a part of it, is not an answer in this format.
        """
        ...

    def are_equivalent(self, first: str, second: str) -> bool:
        """
        Whether an answer is right, given the label.

        Args:
            first (`str`): the label.
            second (`str`): the answer.

        Returns:
            `bool`
        """
        ...

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """
        Convert an answer to a value of the label column.

        Args:
            answer (`str`): the answer.
            feature (`datasets.Value` or `datasets.ClassLabel`, *optional*): type of the column. Defaults to a string.

        Returns:
            `str`, `int` or `float`, by the type of the column.

        Raises:
            ValueError: if the answer does not fit the type.
        """
        ...


def check_length(answer: str) -> None:
    """Raise `ValueError` if a text is too long for an answer, or cannot be encoded as UTF-8 and so not be stored."""
    if len(answer) > MAX_ANSWER_LENGTH:
        raise ValueError(f"the answer has {len(answer):,} characters, more than {MAX_ANSWER_LENGTH:,}")
    if any("\ud800" <= character <= "\udfff" for character in answer):
        raise ValueError("the answer holds half a character (a lone surrogate)")


def to_fraction(text: str) -> Fraction:
    """The value of a plain number such as `1,234.5`, `-3` or `3/4`; raises `ValueError` for anything else."""
    try:
        return Fraction(text.strip().replace(",", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text[:80]!r} is no plain number") from None


def to_type(answer: str, feature: Any) -> Any:
    """Convert an answer to the type of a column; raises `ValueError` if it does not fit."""
    if feature is None:
        return answer
    import pyarrow as pa
    from datasets import ClassLabel, Value  # already loaded wherever a column has a type

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
