"""Rows of dictionaries to files: JSON Lines, JSON, CSV, Parquet."""

import csv
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


Row = dict[str, Any]
# Spreadsheets run cells that begin like this as formulas, some also behind what cannot be seen.
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")


def _write_jsonl(rows: Sequence[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["prompt_id", "answer"])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: guard_cell(value) for name, value in row.items()})


def guard_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet could take for a formula."""
    return "'" + value if isinstance(value, str) and _needs_guard(value) else value


def unguard_cell(value: Any) -> Any:
    """Take the apostrophe of [`guard_cell`] away again."""
    is_guarded = isinstance(value, str) and value.startswith("'") and _needs_guard(value[1:])
    return value[1:] if is_guarded else value


def _needs_guard(text: str) -> bool:
    # A text that begins with an apostrophe gets another, so that each can be told from a guarded one.
    if text.startswith(("'", "\t", "\r", "\n")):
        return True
    visible = (character for character in text if unicodedata.category(character) not in _INVISIBLE)
    return next(visible, "") in _FORMULA_STARTS


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    names = list(rows[0]) if rows else ["prompt_id", "answer"]
    types = {"score": pa.float64()}
    columns = [pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in names]
    pq.write_table(pa.table(columns, names=names), path)


def _write_json(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "label-studio": _write_json,
}
SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "label-studio": ".json"}
