"""
Which LaTeX answers math-verify reads completely. This file only looks at notation, so nothing here can hang or fill
the memory.

math-verify drops what it does not know (units, primes, the base in `52_8`), reads words as products of letters, and
falls back to the last number. An answer is therefore accepted only if all of its notation is known to be read.
"""

import re
import unicodedata


_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d*\.?\d+)(/\d+)?%?")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})")
_MIXED_NUMBER = re.compile(r"([+-]?)(\d{1,15})\s+(\d{1,15})/(\d{1,15})")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?")
# A spreadsheet turns `1/2` into the first form.
_DATE = re.compile(r"\d{1,2}/\d{1,2}/\d{2,4}|\d{4}-\d{1,2}-\d{1,2}")
_DECIMAL_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")
_THIN_SPACE = re.compile(r"\\!\s*")
_AND_OR = re.compile(r",?\s*(?:\\text\{\s*(?:and|or)\s*\}|(?<=[\d})\s])(?:and|or)(?=[\d{(\s\\]))\s*")
# math-verify takes these for mixed numbers, like `2\frac{1}{2}`.
_IN_BRACKETS = r"[(\[]\s*(?:[\d.]+|\\[dtc]?frac\s*\{\d+\}\s*\{\d+\})\s*[)\]]"
_MIXED_PRODUCT = re.compile(rf"\d\s*{_IN_BRACKETS}|{_IN_BRACKETS}\s*(?:\d|{_IN_BRACKETS})")
_MATRIX = re.compile(r"\\(begin|end)\{[pbv]?matrix\}")
_SET = re.compile(r"\\mathbb\s*\{?[NZQRC]\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
# Letters side by side in alphabetical order are a product, as in `6xy`. Other letters, or letters alone, are a word.
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_CHARACTERS = re.compile(r"[\w+\-*/^=<>()\[\]{},;:.!|%&\s]*", re.ASCII)
_KNOWN = frozenset(
    "left right displaystyle frac dfrac tfrac cfrac sqrt binom dbinom tbinom cdot times div pm infty circ cup cap "
    "setminus in le leq ge geq lt gt ne neq ln log exp sin cos tan csc sec cot arcsin arccos arctan sinh cosh tanh "
    "lfloor rfloor lceil rceil lbrace rbrace lbrack rbrack lvert rvert emptyset varnothing pi alpha beta gamma delta "
    "epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega { } % , ; : |".split()
) | {" ", "\\"}
_SPACES = re.compile(r"\\[,;: ]|~")

_PLAIN_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "⁄": "/", "∞": r"\infty ", "π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "°": r"^\circ "}
    | {"≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "∪": r"\cup ", "∅": r"\emptyset "}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FRACTION_CHARACTER = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]|\\pi))")
_PLAIN_ROOT = re.compile(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)")
_PLAIN_NAME = re.compile(r"(?<![a-zA-Z\\])(pi|ln|log|sin|cos|tan)(?![a-zA-Z])")


def is_number(answer: str) -> bool:
    """Whether an answer is a plain number, which math-verify reads outside math mode."""
    return _NUMBER.fullmatch(answer) is not None


def bare(text: str) -> str:
    """An answer without the text up to GSM8K's `####`, and without the dollar signs around it."""
    answer = text.rsplit("####", 1)[-1].strip()
    inner = answer[1:-1].strip()
    return inner if answer[:1] == answer[-1:] == "$" and len(answer) > 2 and "$" not in inner else answer


def as_label(text: str) -> str:
    r"""
    Write an answer so that `accuracy_reward` reads all of it. Outside math mode, math-verify sees nothing in
    `\sqrt{2}` and `(1,2)`, a 2 in `2\pi`, an `x` in `1/x`, and only the last value in `1, 2`. Everything but a plain
    number is therefore put into math mode. Dollar signs before amounts are removed, as they would end math mode.
    """
    answer = _THIN_SPACE.sub("", bare(text).replace("\\$", ""))  # a negative thin space, as in 1,\!234
    if power := _SCIENTIFIC.fullmatch(answer):
        return rf"${power[1]} \times 10^{{{int(power[2])}}}$"
    answer = answer.removeprefix("+") if is_number(answer) else answer
    return answer if is_number(answer) or "$" in answer or "\\boxed" in answer else f"${answer}$"


def from_keyboard(text: str) -> str:
    """
    Convert what a person typed to LaTeX: other minus signs, `½`, `x²`, `√2`, `2pi`, `1 2/3`, `\\frac12`.
    """
    answer = _SUPERSCRIPTS.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    answer = _SUBSCRIPTS.sub(lambda found: f"_{{{unicodedata.normalize('NFKC', found[0])}}}", answer)
    answer = _FRACTION_CHARACTER.sub(lambda found: " " + found[0], answer)
    answer = unicodedata.normalize("NFKC", answer).translate(_PLAIN_CHARACTERS)
    answer = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", answer)
    answer = _PLAIN_ROOT.sub(r"\\sqrt{\1}", answer)
    answer = _PLAIN_NAME.sub(r"\\\1", answer)
    # TRL does not repair `\frac12` in completions.
    answer = re.sub(r"(\\[dtc]?frac)\s*(\d)", r"\1{\2}", answer)
    answer = re.sub(r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", answer)
    answer = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", answer)
    answer = bare(answer).removesuffix(".").strip()
    answer = answer if re.match(r"\+\s*[+-]", answer) else answer.removeprefix("+").strip()
    if power := _SCIENTIFIC.fullmatch(answer):
        return rf"{power[1]} \times 10^{{{int(power[2])}}}"
    if mixed := _MIXED_NUMBER.fullmatch(answer):
        sign, whole, numerator, denominator = mixed.groups()
        answer = f"{sign}{int(whole) * int(denominator) + int(numerator)}/{denominator}"
    return answer


def what_is_not_read(answer: str) -> str | None:
    """
    Why math-verify does not read all of an answer. The answer has no dollar signs around it. Returns the reason in
    words for people, or `None` if math-verify reads all of it.
    """
    rest = _THIN_SPACE.sub("", answer.replace("\\$", ""))
    if _SCIENTIFIC.fullmatch(rest):
        return "its e is read as a number"
    if is_number(rest):
        return "it divides by zero" if re.search("/0+%?$", rest) else None
    if _CLOCK.fullmatch(rest):
        return "it is a time, which would be read as a fraction"
    if _DATE.fullmatch(rest):
        return "it is a date, which would be read as a difference or a fraction"
    if _DECIMAL_COMMA.fullmatch(rest):
        return "its comma would be read as that of a list"
    rest = _AND_OR.sub(",", rest)
    rest = _SET.sub(r"\\infty ", _MATRIX.sub(" ", rest))
    if unknown := [name for name in _COMMAND.findall(rest) if name not in _KNOWN]:
        return f"the command \\{unknown[0]} is not read"
    rest = _SPACES.sub(" ", rest)
    if re.search(r"[\d)\]}]\s*_|_\s*\{[^{}]*[^\w{}][^{}]*\}", re.sub(r"\\log\s*_", "", rest)):
        return "an index at a number is not read"
    plain = _COMMAND.sub(" ", rest)
    if not _CHARACTERS.fullmatch(plain):
        odd = next(character for character in plain if not _CHARACTERS.fullmatch(character))
        return f"the character {odd!r} is not read"
    if re.search(r"[+-]\s*[+-]", rest):
        return "two signs stand side by side"
    if re.search(r"(?<!_)[A-Za-z]\d", plain):
        return "a digit behind a letter would be read as a factor"
    if _MIXED_PRODUCT.search(re.sub(r"\\(left|right)(?![A-Za-z])", "", rest)):
        return "numbers in brackets side by side would be read as a sum"
    rest = re.sub(r"(\\log\s*)_\s*\d(?!\d)", r"\1", rest)
    if re.search(r"\d\s+[\d.]|\d\.\d*\.|\.\d+\.", rest) or re.search(r"\d[A-Za-z]*_\w*\d\s*\.", rest):
        return "two numbers stand side by side"
    if len(re.findall(r"(?<![<>!])=", rest)) > 1 and "," not in rest:
        return "of a chain of equations only one would be read"
    if "=" in rest and not re.search("[A-Za-z]", plain):
        return "an equation of numbers says nothing"
    for found in _LETTERS.finditer(plain):
        letters = found[0].lower()
        is_apart = re.search(r"\w\s+$", plain[: found.start()]) or re.match(r"\s+\w", plain[found.end() :])
        if list(letters) != sorted(letters) or len(letters) > 3 or is_apart or plain.strip() == found[0]:
            return f"{found[0]!r} is a word"
    if re.fullmatch(r"\s*n\s*/\s*a\s*", plain, re.IGNORECASE):
        return "it says that there is no answer"
    return None


def tokens(text: str) -> list[str]:
    """The numbers, letters and commands of a formula, without commands that only change its appearance."""
    text = re.sub(r"\\\$|\$", "", _THIN_SPACE.sub("", text))
    text = re.sub(r"\\[dtc](frac|binom)", r"\\\1", _AND_OR.sub(",", text))
    found = re.findall(r"\\[A-Za-z]+|[0-9A-Za-z]", text)
    return [token for token in found if token not in (r"\left", r"\right", r"\displaystyle")]
