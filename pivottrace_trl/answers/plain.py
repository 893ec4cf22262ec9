"""Formats of answers that are no formulas: numbers, choices, texts."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from .base import Reading, to_fraction, to_type


_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?"
# What stands between white space and holds a digit: a number, or `12:30`, which is none.
_WITH_DIGITS = re.compile(r"[^\s=]*\d[^\s=]*")
_AROUND_NUMBERS = "*_$\\()[],.;:!?\"'"
_SAID = re.compile(r"(?i:answer)(?:\s+is)?\s*:?[\s*_$]*")
# The end of a completion holds its answer.
_MAX_COMPLETION_LENGTH = 5_000
_MAX_LENGTH = 1_000
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_UNICODE = str.maketrans({"−": "-", "–": "-", "⁄": "/"})


def find_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text; `None` if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : place].strip()
    return None


def _candidates(completion: str) -> list[str]:
    """Where the final answer may stand, the most certain place first."""
    tail = completion[-_MAX_COMPLETION_LENGTH:]
    boxed = find_boxed(tail)
    if boxed is not None:
        return [_WRAPPERS.sub(r"\1", boxed)]
    if "####" in tail:
        return [tail.rsplit("####", 1)[1]]
    said = list(_SAID.finditer(tail))
    return [tail[said[-1].end() :]] if said else []


def _check_text(text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise ValueError("the answer is empty")
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"the answer has {len(text):,} characters, more than {_MAX_LENGTH:,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the answer holds half a character (a lone surrogate)")
    return text


class TextFormat:
    r"""
    Answers that are compared as they are written, but for white space. Found in `\boxed{}`, after `####`, or after
    "answer is" on the same line. Subclass it to find them elsewhere.
    """

    name = "text"

    def extract(self, completion: str) -> str | None:
        """The final answer of a completion; `None` if there is none."""
        for candidate in _candidates(completion):
            line = candidate.strip().split("\n", 1)[0]
            try:
                return _check_text(line.strip("*_").removesuffix("."))
            except ValueError:
                return None
        return None

    def read(self, text: str) -> Reading:
        """The text without white space around it; raises `ValueError` if it is empty."""
        text = _check_text(text)
        return Reading(text, text)

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether both are written alike."""
        return first.split() == second.split()

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """The answer in the type of the label column; raises `ValueError` if it does not fit."""
        return to_type(answer, feature)


class NumberFormat:
    r"""
    Plain numbers: integers, decimals, fractions, with or without thousands separators. Found in `\boxed{}`, after
    `####` or "answer is", else the last number of the completion. Compared by value, exactly.
    """

    name = "number"

    def extract(self, completion: str) -> str | None:
        """The final number of a completion; `None` if there is none."""
        tail = completion[-_MAX_COMPLETION_LENGTH:].translate(_UNICODE)
        if (boxed := find_boxed(tail)) is not None:
            written = [boxed.replace("\\!", "").replace("\\$", "").replace(" ", "")]
        else:
            said = _candidates(tail)
            written = _WITH_DIGITS.findall(said[0])[:1] if said else _WITH_DIGITS.findall(tail)[-1:]
        answer = written[0].strip(_AROUND_NUMBERS) if written else ""
        return answer if re.fullmatch(_NUMBER, answer) else None

    def read(self, text: str) -> Reading:
        """The number without separators and sign of its own; raises `ValueError` if there is anything but a number."""
        answer = unicodedata.normalize("NFKC", _check_text(text)).translate(_UNICODE).rsplit("####", 1)[-1].strip()
        if not re.fullmatch(_NUMBER, answer):
            raise ValueError(f"{answer[:80]!r} is no number: write digits only, such as 1234.5, -3 or 3/4")
        answer = answer.replace(",", "").removeprefix("+")
        to_fraction(answer)
        return Reading(answer, answer)

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether both have the same value."""
        try:
            return to_fraction(first) == to_fraction(second)
        except ValueError:
            return False

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """The number in the type of the label column; raises `ValueError` if it does not fit."""
        return to_type(self.read(answer).label, feature)


class ChoiceFormat:
    r"""
    One of a few declared answers, such as the letters of a multiple-choice question. Found in `\boxed{}`, after `####`
    or "answer is", or alone on the last line. Compared without regard to case and brackets.

    Args:
        choices (`Sequence[str]`, *optional*, defaults to `"ABCDE"`):
            The answers that there are.

    Raises:
        ValueError: for fewer than two choices, empty ones, or two that differ in case only.
    """

    def __init__(self, choices: Sequence[str] = "ABCDE"):
        self._choices = {choice.strip().casefold(): choice.strip() for choice in choices}
        if len(self._choices) < 2 or len(self._choices) != len(choices) or "" in self._choices:
            raise ValueError(f"`choices` is {choices!r}, but must be at least two different answers, none empty.")
        if any("," in choice for choice in self._choices):
            raise ValueError(f"`choices` is {choices!r}, but a choice may hold no comma.")
        self.name = "choice:" + ",".join(self._choices.values())
        either = "|".join(re.escape(choice) for choice in sorted(self._choices.values(), key=len, reverse=True))
        # In running text a small "a" is a word more often than a choice.
        in_text = re.RegexFlag(0) if any(len(choice) == 1 for choice in self._choices) else re.IGNORECASE
        self._start = re.compile(rf"[\s(\[*_$]*({either})(?!\w)", in_text)
        self._alone = re.compile(rf"[\s(\[*_$]*({either})[\s)\].*_$]*", re.IGNORECASE)

    def extract(self, completion: str) -> str | None:
        """The choice of a completion; `None` if there is none."""
        for candidate in _candidates(completion):
            found = self._alone.fullmatch(candidate) or self._start.match(candidate)
            return self._choices[found[1].casefold()] if found else None
        lines = completion[-_MAX_COMPLETION_LENGTH:].strip().rsplit("\n", 1)
        found = self._alone.fullmatch(lines[-1])
        return self._choices[found[1].casefold()] if found else None

    def read(self, text: str) -> Reading:
        """The choice as it was declared; raises `ValueError` if it is none."""
        found = self._alone.fullmatch(_check_text(text))
        if found is None:
            raise ValueError(f"{text.strip()[:80]!r} is none of the choices {', '.join(self._choices.values())}")
        choice = self._choices[found[1].casefold()]
        return Reading(choice, choice)

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether both are the same choice."""
        try:
            return self.read(first) == self.read(second)
        except ValueError:
            return False

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """The choice in the type of the label column; raises `ValueError` if it does not fit."""
        return to_type(self.read(answer).label, feature)
