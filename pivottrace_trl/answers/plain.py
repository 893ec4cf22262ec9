"""Answer formats other than mathematics: numbers, choices, texts."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from .base import MAX_RESPONSE_LENGTH, Reading, check_length, to_fraction, to_type


_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?", re.ASCII)
# A word that holds a digit: a number, or something like `12:30`, which is not one.
_WITH_DIGITS = re.compile(r"[^\s=]*\d[^\s=]*")
_AROUND_NUMBERS = "*_$\\()[],.;:!?\"'"
# What changes the value of the number before it.
_GOES_ON = re.compile(
    r"[^\S\n]*(?:\.?\d|[+/^%×·÷±½¼¾²³]|[-*]\s*\d|\\(?!text|mbox|math|textrm|[)\]])|(?:,|or\b|and\b|to\b)\s*[-$\\]*\d|"
    r"(?:hundred|thousand|million|billion|trillion|dozen|percent|sqrt|pi)\b)",
    re.IGNORECASE,
)
_SAID = re.compile(r"(?i:\banswers?)(?:\s+(?:is|are)\b\s*:?|[\s*_]*[:=]|[*_]*[^\S\n]*\n)[\s*_$]*")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_BOX = "\\boxed{"
# Escaped braces belong to the answer.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNICODE = str.maketrans({"−": "-", "–": "-", "⁄": "/"})


def find_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text, if it is closed; `None` if there is none."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start, depth = start + len(_BOX), 1
    for found in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[start : found.start()].strip()
    return None


def _candidates(completion: str) -> list[str]:
    """Where the final answer may be, the most likely place first."""
    tail = completion[-MAX_RESPONSE_LENGTH:]
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
    check_length(text)
    return text


class TextFormat:
    r"""
    Texts that are compared as written, ignoring white space. The answer is found in `\boxed{}`, after `####`, or after
    "answer is" on the same line. Subclass this format to find answers elsewhere.
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
        """Whether both are the same text, ignoring white space."""
        return first.split() == second.split()

    def to_label(self, answer: str, feature: Any = None) -> Any:
        """The answer in the type of the label column; raises `ValueError` if it does not fit."""
        return to_type(answer, feature)


class NumberFormat:
    r"""
    Plain numbers: integers, decimals and fractions, with or without thousands separators. The answer is found in
    `\boxed{}`, after `####` or "answer is"; otherwise it is the last number of the completion. Values are compared
    exactly.
    """

    name = "number"

    def extract(self, completion: str) -> str | None:
        """The final number of a completion; `None` if there is none."""
        tail = completion[-MAX_RESPONSE_LENGTH:].translate(_UNICODE)
        if (boxed := find_boxed(tail)) is not None:
            answer = re.sub(r"\\!\s*|\\\$", "", boxed)
        else:
            said = _candidates(tail)
            found = list(_WITH_DIGITS.finditer(said[0] if said else tail))
            if not found:
                return None
            written = found[0 if said else -1]
            answer, rest = written[0], written.string[written.end() :]
            # A full stop at the end of a sentence is no decimal point.
            if not answer.endswith((".", ";", "!", "?")) and _GOES_ON.match(answer[len(answer.rstrip(",")) :] + rest):
                return None
        answer = answer.strip(_AROUND_NUMBERS + " ")
        return answer if _NUMBER.fullmatch(answer) else None

    def read(self, text: str) -> Reading:
        """The number without separators and without a plus sign; raises `ValueError` if the text is not a number."""
        # `5²` must not become 52, and `1½` must not become 11/2.
        answer = re.sub("[²³¹⁰-₉¼-¾⅐-⅞↉]", r" \g<0>", _check_text(text))
        answer = unicodedata.normalize("NFKC", answer).translate(_UNICODE).rsplit("####", 1)[-1].strip()
        if not _NUMBER.fullmatch(answer):
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
    One of a few declared answers, such as the letters of a multiple-choice question. The answer is found in
    `\boxed{}`, after `####` or "answer is", or alone on the last line. Case and brackets are ignored.

    Args:
        choices (`Sequence[str]`, *optional*, defaults to `"ABCDE"`):
            The possible answers.

    Raises:
        ValueError: if there are fewer than two choices, an empty one, one with a comma, or two that differ only in
            case.
    """

    def __init__(self, choices: Sequence[str] = "ABCDE"):
        self._choices = {choice.strip().casefold(): choice.strip() for choice in choices}
        if len(self._choices) < 2 or len(self._choices) != len(choices) or "" in self._choices:
            raise ValueError(f"`choices` is {choices!r}, but must be at least two different answers, none empty.")
        if any("," in choice for choice in self._choices):
            raise ValueError(f"`choices` is {choices!r}, but a choice may hold no comma.")
        self.name = "choice:" + ",".join(self._choices.values())
        either = "|".join(re.escape(choice) for choice in sorted(self._choices.values(), key=len, reverse=True))
        self._start = re.compile(rf"[\s(\[*_$]*({either})(?!\w)", re.IGNORECASE)
        # `A and C`, `A^2` and `a number` must not become A.
        marks = r"[\s)\].:*_$]*"
        self._goes_on = re.compile(rf"{marks}(?:[\^/+=<>&|]\s*\w|,?\s*(?:and\b|or\b)?[\s(\[*_$]*(?:{either})(?!\w))")
        self._ends = re.compile(r"[\s*_$]*(?:[)\].,:;]|$)")
        self._alone = re.compile(rf"[\s(\[*_$]*({either})[\s)\].*_$]*", re.IGNORECASE)

    def extract(self, completion: str) -> str | None:
        """The choice of a completion; `None` if there is none."""
        for candidate in _candidates(completion):
            if (found := self._start.match(candidate)) is None:
                return None
            choice, rest = self._choices[found[1].casefold()], candidate[found.end() :].split("\n", 1)[0]
            is_alone = self._goes_on.match(rest) is None and (found[1] == choice or self._ends.match(rest))
            return choice if is_alone else None
        lines = completion[-MAX_RESPONSE_LENGTH:].strip().rsplit("\n", 1)
        found = self._alone.fullmatch(lines[-1])
        return self._choices[found[1].casefold()] if found else None

    def read(self, text: str) -> Reading:
        """The choice as it was declared; raises `ValueError` if the text is not one of the choices."""
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
