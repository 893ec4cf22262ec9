"""
Final answers in free text, on math-verify. Some mathematics never ends and some fills the memory: what a model or a
person wrote goes through `reader`, which runs this in a process that can be killed.
"""

import logging
import re
import signal
import threading
import unicodedata

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import latex

from .base import Reading


_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d*\.?\d+)(/\d+)?%?")
_MIXED_NUMBER = re.compile(r"([+-]?)(\d{1,15})\s+(\d{1,15})/(\d{1,15})")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})")
_MATHEMATICS = re.compile(r"[\\^_{}]")
_PLAIN_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "⁄": "/", "∞": r"\infty ", "π": r"\pi ", "×": r"\times ", "·": "*"}
)
# Answers longer than this are prose or runaway generations; parsing them only costs time.
_MAX_ANSWER_LENGTH = 1000
# The end of a response holds its answer; the time the parser takes grows with the square of the length.
MAX_RESPONSE_LENGTH = 5_000
_SECONDS = 2


def _timeout() -> int | None:
    """Seconds for parsing or comparing. math-verify uses `signal.alarm`: only on the main thread, not on Windows."""
    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        return _SECONDS
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


def _is_text(text: str) -> bool:
    """Whether UTF-8, and with it a file, can hold a text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def extract_answer(response: str) -> str | None:
    """What [`~reader.AnswerReader`] does, in this process, where it may fill the memory."""
    parsed = parse(
        response[-MAX_RESPONSE_LENGTH:],
        extraction_config=[
            LatexExtractionConfig(normalization_config=NormalizationConfig(units=True), boxed_match_priority=0),
            ExprExtractionConfig(),
        ],
        parsing_timeout=_timeout(),
    )
    written = [item for item in parsed if isinstance(item, str) and item.strip()]
    answer = written[-1].strip() if written else ""
    return answer if 0 < len(answer) <= _MAX_ANSWER_LENGTH and _is_text(answer) else None


def as_label(answer: str) -> str:
    """What [`~reader.AnswerReader`] does, in this process, where it may fill the memory."""
    answer = answer.strip().replace("\\$", "")
    answer = re.sub(r"\\!\s*", "", answer)  # a thin space back, as in 1,\!234
    if power := _SCIENTIFIC.fullmatch(answer):
        return rf"${power[1]} \times 10^{{{int(power[2])}}}$"
    if _NUMBER.fullmatch(answer) or "$" in answer or "\\boxed" in answer:
        return answer
    if _MATHEMATICS.search(answer) or "," in answer:
        return f"${answer}$"
    return answer if parse(answer[-MAX_RESPONSE_LENGTH:], parsing_timeout=_timeout()) else f"${answer}$"


def read_answer(text: str) -> Reading:
    """What [`~reader.AnswerReader`] does, in this process, where it may fill the memory."""
    answer = unicodedata.normalize("NFKC", text).translate(_PLAIN_CHARACTERS).rsplit("####", 1)[-1].strip()
    if "\\boxed" in answer:
        answer = extract_answer(answer) or ""
    answer = answer.removeprefix("$").removesuffix("$").strip().removeprefix("+")
    if not answer:
        raise ValueError("the answer is empty")
    if len(answer) > _MAX_ANSWER_LENGTH:
        raise ValueError(f"the answer has {len(answer):,} characters, more than {_MAX_ANSWER_LENGTH:,}")
    if not _is_text(answer):
        raise ValueError("the answer holds half a character (a lone surrogate)")
    if mixed := _MIXED_NUMBER.fullmatch(answer):
        sign, whole, numerator, denominator = mixed.groups()
        answer = f"{sign}{int(whole) * int(denominator) + int(numerator)}/{denominator}"
    label = as_label(answer)
    parsed = parse(label, parsing_timeout=_timeout())
    readable = [item for item in parsed if not isinstance(item, str)]
    if not readable:
        raise ValueError(f"math-verify reads nothing in {answer[:80]!r}: write a number or a formula in LaTeX")
    read = label.replace("%", r"\%") if _NUMBER.fullmatch(label) else latex(readable[0])
    return Reading(label, f"${read}$")


def _parse_label(label: str) -> list:
    # GSM8K writes "worked text #### answer".
    answer = label.rsplit("####", 1)[-1].strip()
    return parse(as_label(answer)[-MAX_RESPONSE_LENGTH:], parsing_timeout=_timeout())


def is_correct(response: str, label: str) -> bool:
    """What [`~reader.AnswerReader`] does, in this process, where it may fill the memory."""
    answer = extract_answer(response)
    if answer is None:
        return False
    parsed = _parse_label(label)
    parsed_answer = _parse_label(answer)
    if not parsed or not parsed_answer:
        return answer.strip() == label.rsplit("####", 1)[-1].strip()
    return bool(verify(parsed, parsed_answer, timeout_seconds=_timeout()))


def are_equivalent(first: str, second: str) -> bool:
    """What [`~reader.AnswerReader`] does, in this process, where it may fill the memory."""
    if first == second:
        return True
    parsed_first, parsed_second = _parse_label(first), _parse_label(second)
    if not parsed_first or not parsed_second:
        return False
    timeout = _timeout()
    return bool(
        verify(parsed_first, parsed_second, timeout_seconds=timeout)
        and verify(parsed_second, parsed_first, timeout_seconds=timeout)
    )
