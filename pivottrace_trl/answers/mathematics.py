"""
Final answers in free text, read with math-verify. Some expressions never finish and some fill the memory. Text from a
model or a person therefore goes through `reader`, which runs this module in a process that can be killed.
"""

import logging
import re
import signal
import threading
from functools import lru_cache

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import latex

from .base import MAX_RESPONSE_LENGTH, Reading, check_length
from .notation import as_label, bare, from_keyboard, is_number, tokens, what_is_not_read
from .plain import find_boxed


_SECONDS = 2
# How `trl.rewards.accuracy_reward` reads labels and completions.
_OF_LABELS = LatexExtractionConfig()
_OF_COMPLETIONS = LatexExtractionConfig(
    normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
)
_ANYWHERE = (
    LatexExtractionConfig(normalization_config=NormalizationConfig(units=True), boxed_match_priority=0),
    ExprExtractionConfig(),
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# A decimal comma in many spreadsheets, a list of two answers in LaTeX.
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w(*])")


def _timeout() -> int | None:
    """Seconds for parsing or comparing. math-verify uses `signal.alarm`: only on the main thread, not on Windows."""
    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        return _SECONDS
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


def _is_answer(text: str) -> bool:
    try:
        check_length(text)
    except ValueError:
        return False
    return bool(text)


@lru_cache(maxsize=2048)
def _read_label(label: str) -> tuple:
    return tuple(parse(label[-MAX_RESPONSE_LENGTH:], parsing_timeout=_timeout()))


def _read_completion(completion: str) -> tuple:
    return tuple(parse(completion, [_OF_COMPLETIONS], extraction_mode="first_match", parsing_timeout=_timeout()))


@lru_cache(maxsize=2048)
def _read_boxed(answer: str) -> tuple:
    return _read_completion(rf"\boxed{{{answer}}}")


def extract_answer(response: str) -> str | None:
    """As in [`~reader.AnswerReader`], but in this process, without limits on time and memory."""
    tail = response[-MAX_RESPONSE_LENGTH:]
    boxed = find_boxed(tail)
    seen = _read_completion(tail)
    if seen:
        # As written, if TRL reads the same. Otherwise what TRL reads: two boxes, for example, are one answer to it.
        candidates = [boxed, f"{boxed}\\%", _last_formula(tail), *_texts(seen)]
        fitting = (text for text in candidates if text and _is_answer(text) and _read_boxed(text)[:1] == seen[:1])
        answer = next(fitting, None)
    else:
        tail = _BOLD.sub(r"\1", tail)
        seen = tuple(parse(tail, _ANYWHERE, parsing_timeout=_timeout()))
        formula = _last_formula(tail)
        is_whole = formula is not None and _read_label(f"${formula}$")[:1] == seen[:1]
        answer = formula if is_whole else next(iter(_texts(seen)), None)
    return answer if answer and _is_answer(answer) else None


def _last_formula(text: str) -> str | None:
    found = _FORMULA.findall(text)
    return "".join(found[-1]).strip() if found else None


def _texts(seen: tuple) -> list[str]:
    return [item.strip() for item in seen if isinstance(item, str) and item.strip()]


@lru_cache(maxsize=8192)
def _pays(label: str, answer: str) -> bool:
    """Whether `accuracy_reward` rewards a completion that ends in this answer, in a box, given this label."""
    return _is_paid(_read_label(as_label(label)), _read_boxed(answer))


def _is_paid(gold: tuple, answer: tuple) -> bool:
    return bool(gold and verify(list(gold), list(answer), timeout_seconds=_timeout()))


@lru_cache(maxsize=2048)
def _why_not_read(answer: str) -> str | None:
    """Why an answer is not read completely, as a label and in a completion; `None` if it is."""
    if (reason := what_is_not_read(answer)) is not None:
        return reason
    label = as_label(answer)
    if not is_number(label):
        inner = bare(label)
        seen = parse(label, [_OF_LABELS], extraction_mode="first_match", parsing_timeout=_timeout())
        if not seen or isinstance(seen[0], str):
            return "it is no complete formula"
        for config in (_OF_LABELS, _OF_COMPLETIONS):
            if tokens(normalize_latex(inner, config.normalization_config)) != tokens(inner):
                return "a part of it is left out"
    return None if _pays(answer, answer) else "it has no value"


def read_answer(text: str) -> Reading:
    """As in [`~reader.AnswerReader`], but in this process, without limits on time and memory."""
    answer = text.rsplit("####", 1)[-1].strip()
    boxed = find_boxed(answer)
    answer = from_keyboard(answer if boxed is None else boxed)
    if not answer.strip("$ "):
        raise ValueError("the answer is empty")
    check_length(answer)
    label = as_label(answer)
    if not is_number(label) and _DECIMAL_COMMA.fullmatch(bare(label)):
        whole, rest = bare(label).split(",")
        raise ValueError(
            f"{answer!r} may be one number or two: write {whole}.{rest}, or '{whole}, {rest}' with a space"
        )
    seen = [item for item in _read_label(label) if not isinstance(item, str)]
    if (reason := _why_not_read(answer)) is not None:
        reads = f"only {latex(seen[0])}" if seen else "nothing"
        raise ValueError(
            f"math-verify reads {reads} in {answer[:80]!r}, as {reason}: write a number or a formula in LaTeX"
        )
    preview = label.replace("%", r"\%") if is_number(label) else latex(seen[0])
    return Reading(label, f"${preview}$")


def are_equivalent(first: str, second: str) -> bool:
    """As in [`~reader.AnswerReader`], but in this process, without limits on time and memory."""
    label, answer = bare(first), bare(second)
    return _why_not_read(label) is None and _pays(label, answer)


def is_correct(response: str, label: str) -> bool:
    """As in [`~reader.AnswerReader`], but in this process, without limits on time and memory."""
    answer = extract_answer(response)
    if answer is None:
        return False
    gold, seen = _read_label(as_label(label)), _read_label(as_label(answer))
    if not gold or not seen:
        return answer == bare(label)
    return _is_paid(gold, seen)
