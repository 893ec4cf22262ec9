"""Prompts and attempts as safe markup."""

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
# A formula in brackets holds no other: a thousand open brackets are then read in a thousand steps, not a million.
# As in Pandoc: after an opening dollar and before a closing one there is no space, and behind it there is no digit.
_FORMULA = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>(?:(?!\\\[).)+?)\\\]|\\\((?P<inline>(?:(?!\\\().)+?)\\\)"
    r"|(?<!\\)\$(?P<dollar>[^\s$](?:[^$]*?[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>:=^])")


def to_markdown(text: str) -> str:
    """Write a prompt as Markdown that shows it as it is, its formulas between [`LATEX_DELIMITERS`]."""
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
    # An escaped character stands for itself; line ends are kept by two spaces.
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False)).replace("\n", "  \n")


@dataclass(frozen=True)
class Attempt:
    """A response of the policy."""

    text: str
    spans: tuple[tuple[int, int], ...]  # where each pivot token begins, and the first character after it


def load_attempts(path: Path) -> dict[str, Attempt]:
    """Read what [`~report.attempts.write_attempts`] wrote, by prompt id; the file may be absent."""
    if not path.is_file():
        return {}
    with reading(path, "Move it away: the desk works without the attempts."):
        columns = pq.read_table(path).to_pydict()
        rows = zip(columns["prompt_id"], columns["text"], columns["pivot_start"], columns["pivot_end"], strict=True)
        return {i: Attempt(text, tuple(zip(starts, ends, strict=True))) for i, text, starts, ends in rows}


def attempt_html(attempt: Attempt | None) -> str:
    """Show a response with its pivots marked."""
    if attempt is None:
        return "<p>The policy's attempt was not kept.</p>"
    parts, end = [], 0
    for start, stop in attempt.spans:
        start = max(start, end)
        if stop > start:
            parts.append(html.escape(attempt.text[end:start]))
            parts.append(f'<mark title="pivot">{html.escape(attempt.text[start:stop])}</mark>')
            end = stop
    parts.append(html.escape(attempt.text[end:]))
    return (
        f'<p class="note">The policy\'s attempt; marked: where its long-range attention jumps ({len(attempt.spans)} '
        f'pivots). It may be wrong.</p><pre class="attempt">{"".join(parts)}</pre>'
    )
