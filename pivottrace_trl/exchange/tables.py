"""Rows of dictionaries to files and back: JSON Lines, JSON, CSV, Parquet."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


Row = dict[str, Any]
# Spreadsheets run cells that begin like this as formulas.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
# The csv module refuses longer cells unless told otherwise; a pool's prompt may be a document.
_MAX_CELL_LENGTH = 10_000_000


def _write_jsonl(rows: Sequence[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            # A line that was cut off must not cost the others.
            rows.append(row if isinstance(row, dict) else {"error": f"line {number} is no JSON object", "line": line})
    return rows


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["prompt_id", "answer"])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: guard_cell(value) for name, value in row.items()})


def _read_csv(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    header = text.replace("\r", "\n").split("\n", 1)[0]
    # Spreadsheets of many countries write semicolons.
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(_MAX_CELL_LENGTH)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="_rest")
    names = [name for name in reader.fieldnames or () if name]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"its header holds {twice[0]!r} twice, so that one column would hide the other")
    return [{name: unguard_cell(value) for name, value in row.items() if name and name != "_rest"} for row in reader]


def guard_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    if isinstance(value, str) and value.startswith((*_FORMULA_STARTS, "'")):
        return "'" + value
    return value


def unguard_cell(value: Any) -> Any:
    """Take the apostrophe of [`guard_cell`] away again."""
    if isinstance(value, str) and value.startswith("'") and value[1:].startswith((*_FORMULA_STARTS, "'")):
        return value[1:]
    return value


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    names = list(rows[0]) if rows else ["prompt_id", "answer"]
    types = {"score": pa.float64()}
    columns = [pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in names]
    pq.write_table(pa.table(columns, names=names), path)


def _read_parquet(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist()


def _write_json(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> list[Row]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it is no list of rows or tasks")
    return [row if isinstance(row, dict) else {"error": "no JSON object", "line": repr(row)[:200]} for row in rows]


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "label-studio": _write_json,
}
SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "label-studio": ".json"}
_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}


def read_rows(path: Path) -> list[Row]:
    """
    Read a file by its ending.

    Args:
        path (`Path`): a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    Returns:
        `list[dict]`: its rows; a line that is no JSON object becomes a row with `error`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if its ending is unknown, or it cannot be read at all.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}, but answers are read from {sorted(_READERS)} files.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return _READERS[path.suffix.lower()](path)
    except (ValueError, csv.Error, RecursionError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as a {path.suffix} file ({error}). Nothing was imported: save it again as UTF-8."
        ) from error
