"""Answer formats by name."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from .base import MAX_ANSWER_LENGTH, AnswerFormat, Reading, to_fraction, to_type
from .notation import as_label
from .plain import ChoiceFormat, NumberFormat, TextFormat
from .reader import AnswerReader, default_reader


# math-verify compares decimal numbers to six places. For numbers up to that length an exact comparison agrees with it.
_SHORT_NUMBER = re.compile(r"-?(0|[1-9]\d{0,8})(\.\d{1,6})?", re.ASCII)
# math-verify reads these as they are, so even a million of them need no process.
_DECIMAL = r"(?:0|[1-9]\d{0,14}|[1-9]\d{0,2}(?:,\d{3}){1,4})(?:\.\d{1,6})?"
_RATIO = r"(?:0|[1-9]\d{0,8})/[1-9]\d{0,8}"
_READ_AS_IT_STANDS = re.compile(rf"(?:.*####)?\s*(-?(?:{_DECIMAL}|{_RATIO}))\s*", re.ASCII | re.DOTALL)


class MathFormat:
    r"""
    Mathematics in LaTeX, as TRL's `accuracy_reward` reads it (with math-verify). The answer is found in `\boxed{}`;
    otherwise it is the last formula or number. Reading happens in a process that is killed if it takes too long.

    Args:
        reader ([`AnswerReader`], *optional*):
            The process. Defaults to one that is shared by all callers.
    """

    name = "math"

    def __init__(self, reader: AnswerReader | None = None):
        self._reader = reader or default_reader

    def extract(self, completion: str) -> str | None:
        """The final answer of a completion; `None` if it has none, or reading it does not finish in time."""
        return self._reader.extract(completion)

    def read(self, text: str) -> Reading:
        """The answer as `accuracy_reward` understands it; raises `ValueError` if it cannot be read."""
        if len(text) <= MAX_ANSWER_LENGTH and (number := _READ_AS_IT_STANDS.fullmatch(text)):
            return Reading(number[1], f"${number[1]}$")
        return self._reader.read(text)

    def are_equivalent(self, first: str, second: str) -> bool:
        """
        Whether `accuracy_reward` rewards the second answer, in a box, when the first is the label. `False` also if the
        label is not read completely, or the time runs out.
        """
        if _SHORT_NUMBER.fullmatch(first) and _SHORT_NUMBER.fullmatch(second):
            return to_fraction(first) == to_fraction(second)
        return self._reader.are_equivalent(first, second)

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """The answer in a form that `accuracy_reward` reads completely; raises `ValueError` if the column has no place
        for it."""
        value = to_type(answer, feature)
        return as_label(value) if isinstance(value, str) else value


_BUILT_IN: dict[str, Callable[[], AnswerFormat]] = {
    "math": MathFormat,
    "number": NumberFormat,
    "choice": ChoiceFormat,
    "text": TextFormat,
}


def resolve_format(answer_format: AnswerFormat | str) -> AnswerFormat:
    """
    Find the format that a user names.

    Args:
        answer_format ([`AnswerFormat`] or `str`):
            `"math"`, `"number"`, `"choice"` or `"text"`; `"choice:yes,no"` for your own choices;
            `"package.module:attribute"` for your own format; or the format itself.

    Raises:
        ValueError: if no format has that name, or your own format has the name of a built-in one.
        TypeError: if it is neither a name nor a format.
    """
    if isinstance(answer_format, str):
        return _load(answer_format)
    if not isinstance(answer_format, AnswerFormat):
        raise TypeError(
            f"`answer_format` is {answer_format!r}, but must be one of {', '.join(map(repr, _BUILT_IN))}, or an "
            "object with `name`, `extract`, `read`, `are_equivalent` and `to_label`. Subclass "
            "`TextFormat`."
        )
    built_in = _BUILT_IN.get(answer_format.name)
    if built_in is not None and type(answer_format) is not built_in:
        raise ValueError(
            f"`answer_format` is {answer_format!r}, whose name {answer_format.name!r} is that of another format. Give "
            "it a `name` of the form `package.module:attribute`, by which the command line can import it."
        )
    return answer_format


def format_of_ledger(name: str, answer_format: AnswerFormat | str | None = None) -> AnswerFormat:
    """
    The answer format of a ledger, which stores its name. A format of this package is loaded by that name alone. Any
    other name is code, and is imported only if the user gives the same name as `answer_format`.

    Raises:
        ValueError: if the ledger names code that the user did not name, or another format than the user.
    """
    if answer_format is None and not is_built_in(name):
        raise ValueError(
            f"The ledger names the answer format {name!r}, which is not part of this package: its code would be "
            f"imported. If it is yours, say so: `answer_format={name}`."
        )
    found = resolve_format(name if answer_format is None else answer_format)
    if found.name != name:
        raise ValueError(f"The answer format is {found.name!r}, but the ledger was made with {name!r}. Use that one.")
    return found


def is_built_in(name: str) -> bool:
    """Whether this is the name of a format of this package, rather than of code to import."""
    return name.partition(":")[0] in _BUILT_IN


def check_name(answer_format: AnswerFormat) -> None:
    """Raise `ValueError` if the command line cannot load a format by its name."""
    module, _, attribute = answer_format.name.partition(":")
    if type(answer_format) not in _BUILT_IN.values() and (not attribute or module == "__main__"):
        raise ValueError(
            f"The answer format {answer_format.name!r} is your own and people answer in it, but `pivottrace "
            "annotate` and `pivottrace desk` cannot import it by that name. Put it into a module and give it a "
            "`name` of the form `package.module:attribute`, such as `my_package.formats:DATES`."
        )


def _load(name: str) -> AnswerFormat:
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    kind, _, rest = name.partition(":")
    if kind == "choice":
        return ChoiceFormat(rest.split(","))
    try:
        found = getattr(importlib.import_module(kind), rest) if rest else None
    except (ImportError, AttributeError):
        found = None
    if not isinstance(found, AnswerFormat):
        raise ValueError(
            f"There is no answer format {name!r}: it is none of {', '.join(map(repr, _BUILT_IN))}, and cannot be "
            "imported as an object either. Give your format a `name` of the form `package.module:attribute`, such as "
            "`my_package.formats:DATES`, and run this where Python can import it."
        )
    return found
