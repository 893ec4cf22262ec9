"""Converts prompts and attempts to safe markup."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ..files import reading


# Delimiters that no prompt uses, so that a dollar amount is never taken for a formula.
LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "\u27ec", "right": "\u27ed", "display": False},
    {"left": "\u27e6", "right": "\u27e7", "display": True},
]
# A formula in brackets contains no other, so that a thousand open brackets take a thousand steps instead of a million.
# As in Pandoc, there is no space after an opening dollar or before a closing one, and no digit after a closing one.
_FORMULA = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>(?:(?!\\\[).)+?)\\\]|\\\((?P<inline>(?:(?!\\\().)+?)\\\)"
    r"|(?<!\\)\$(?P<dollar>[^\s$](?:[^$]*?[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>:=^])")


def to_markdown(text: str) -> str:
    """Escape a prompt as Markdown that shows it unchanged, with its formulas between [`LATEX_DELIMITERS`]."""
    parts, end = [], 0
    for match in _FORMULA.finditer(text):
        parts.append(_escape(text[end : match.start()]))
        display = match["display"] or match["bracket"]
        left, right = (LATEX_DELIMITERS[1 if display else 0][side] for side in ("left", "right"))
        formula = display or match["inline"] or match["dollar"]
        parts.append(f"{left}{formula.replace('<', ' < ')}{right}")
        end = match.end()
    return "".join([*parts, _escape(text[end:])])


def _escape(text: str) -> str:
    # Escaped characters are shown as they are. Two spaces keep the end of a line.
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False)).replace("\n", "  \n")


@dataclass(frozen=True)
class Attempt:
    """A response of the policy."""

    text: str
    spans: tuple[tuple[int, int], ...]  # first character of each pivot token, and the first character after it


def load_attempts(path: Path) -> dict[str, Attempt]:
    """Read the attempts of [`~report.attempts.write_attempts`] by prompt id. The file may be missing."""
    if not path.is_file():
        return {}
    with reading(path, "Move it away: the desk also works without attempts."):
        columns = pq.read_table(path).to_pydict()
        rows = zip(columns["prompt_id"], columns["text"], columns["pivot_start"], columns["pivot_end"], strict=True)
        return {i: Attempt(text, tuple(zip(starts, ends, strict=True))) for i, text, starts, ends in rows}


def attempt_html(attempt: Attempt | None) -> str:
    """Show a response with its pivots marked."""
    if attempt is None:
        return "<p>The policy's attempt was not stored.</p>"
    parts, end = [], 0
    for start, stop in attempt.spans:
        start = max(start, end)
        if stop > start:
            parts.append(html.escape(attempt.text[end:start]))
            parts.append(f'<mark title="pivot">{html.escape(attempt.text[start:stop])}</mark>')
            end = stop
    parts.append(html.escape(attempt.text[end:]))
    return (
        f'<p class="note">The policy\'s attempt, which may be wrong. Its {len(attempt.spans)} pivots are marked: '
        f'there its long-range attention jumps.</p><pre class="attempt">{"".join(parts)}</pre>'
    )
