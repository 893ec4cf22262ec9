"""Writes the queue as a file for people (JSON Lines, CSV, Parquet or Label Studio tasks), and labels and routes."""

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ...files import replace_atomically
from ..ledger import AnnotationLedger
from ..queries import Query


Row = dict[str, Any]
# Spreadsheets run cells that begin like this as formulas, some of them even after invisible characters.
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")
# Name of the control with the answer in the labelling interface; see docs/annotation.md.
ANSWER_CONTROL = "answer"
_NAMES_OF_NOTHING = ("prompt_id", "answer")
_CHUNK_SIZE = 10_000
_BATCH_SIZE = 1000


def export_queue(
    ledger: AnnotationLedger, path: Path, file_format: str, with_suggestions: bool = False, limit: int | None = None
) -> int:
    """
    Write the queue, most valuable first, with an empty `answer` to fill in.

    Args:
        ledger ([`AnnotationLedger`]):
            The run's ledger.
        path (`Path`):
            The file.
        file_format (`str`):
            `"jsonl"`, `"csv"`, `"parquet"` or `"label-studio"`.
        with_suggestions (`bool`, *optional*, defaults to `False`):
            Whether to show the policy's own answer, and the opinions of models that did not agree. This saves typing,
            but biases people towards the models' errors.
        limit (`int`, *optional*):
            Number of queries. Defaults to all.

    Returns:
        `int`: number of queries written.

    Raises:
        ValueError: if the format is unknown, or the limit is below 1.
    """
    if file_format not in WRITERS:
        raise ValueError(f"`file_format` is {file_format!r}, but must be one of {sorted(WRITERS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}, but must be at least 1.")
    ledger.refresh()
    queue = ledger.queue(limit)
    rows: Iterable[Row]
    if file_format == "label-studio":
        rows = _to_tasks(queue, with_suggestions)
    else:
        rows = (
            {
                "prompt_id": query.prompt_id,
                "prompt": query.prompt,
                "purpose": query.purpose,
                "score": query.score,
                **(_suggestions(ledger, query) if with_suggestions else {}),
                "answer": "",
            }
            for query in queue
        )
    replace_atomically(path, lambda temporary: WRITERS[file_format](rows, temporary))
    return len(queue)


def _suggestions(ledger: AnnotationLedger, query: Query) -> Row:
    """The policy's own answer to a prompt and the opinions of models, as one text."""
    said = [f"{said.author}: {said.label}" for said in ledger.opinions(query.prompt_id) if said.label is not None]
    return {"suggestion": query.suggestion, "opinions": "; ".join(said)}


def _to_tasks(queries: Sequence[Query], with_suggestions: bool) -> list[Row]:
    """Convert queries to tasks, with the policy's own answers as predictions if `with_suggestions`."""
    tasks: list[Row] = []
    for query in queries:
        data = {"prompt_id": query.prompt_id, "prompt": query.prompt, "purpose": query.purpose, "score": query.score}
        task: Row = {"data": data}
        if with_suggestions and query.suggestion:
            result = {"from_name": ANSWER_CONTROL, "to_name": "prompt", "type": "textarea"}
            task["predictions"] = [{"result": [result | {"value": {"text": [query.suggestion]}}]}]
        tasks.append(task)
    return tasks


def write_dataset(dataset: Dataset, path: Path, file_format: str) -> None:
    """
    Write all rows as `"jsonl"`, `"csv"` or `"parquet"`, or if it fails leave what was there. In CSV what is no text or
    number is written as JSON.
    """
    writers: dict[str, Callable[[Path], Any]] = {
        "jsonl": lambda temporary: _write_jsonl(_rows_of(dataset), temporary),
        "csv": lambda temporary: _write_csv(_rows_of(dataset), temporary, dataset.column_names),
        "parquet": lambda temporary: dataset.to_parquet(str(temporary)),
    }
    if file_format not in writers:
        raise ValueError(
            f"`--format {file_format}` is for questions. Labels and routes are written as {', '.join(writers)}."
        )
    replace_atomically(path, writers[file_format])


def _rows_of(dataset: Dataset) -> Iterator[Row]:
    for batch in dataset.iter(_BATCH_SIZE):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _write_jsonl(rows: Iterable[Row], path: Path) -> None:
    encode = json.JSONEncoder(ensure_ascii=False, default=datetime.isoformat).encode
    with path.open("w", encoding="utf-8") as file:
        file.writelines(encode(row) + "\n" for row in rows)


def _write_csv(rows: Iterable[Row], path: Path, names: Sequence[str] = _NAMES_OF_NOTHING) -> None:
    rows = iter(rows)
    first = list(islice(rows, 1))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(first[0] if first else names)
        writer.writerows(map(_cell, row.values()) for row in chain(first, rows))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        # Most texts begin with a letter or a digit, and are recognised at once.
        return value if value[:1].isalnum() else guard_cell(value)
    if isinstance(value, (list, dict)):
        return guard_cell(json.dumps(value, ensure_ascii=False))
    return value.isoformat() if isinstance(value, datetime) else value


def guard_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet could take for a formula."""
    return "'" + value if isinstance(value, str) and _needs_guard(value) else value


def unguard_cell(value: Any) -> Any:
    """Remove the apostrophe of [`guard_cell`]."""
    is_guarded = isinstance(value, str) and value.startswith("'") and _needs_guard(value[1:])
    return value[1:] if is_guarded else value


def _needs_guard(text: str) -> bool:
    # A text that begins with an apostrophe gets a second one, so that it differs from a guarded text.
    if text.startswith(("'", "\t", "\r", "\n")):
        return True
    visible = (character for character in text if unicodedata.category(character) not in _INVISIBLE)
    return next(visible, "") in _FORMULA_STARTS


def _write_parquet(rows: Iterable[Row], path: Path) -> None:
    rows = iter(rows)
    chunk = list(islice(rows, _CHUNK_SIZE))
    types = {"score": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (chunk[0] if chunk else _NAMES_OF_NOTHING)])
    with pq.ParquetWriter(path, schema) as writer:
        while chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            chunk = list(islice(rows, _CHUNK_SIZE))


def _write_json(rows: Iterable[Row], path: Path) -> None:
    path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[Iterable[Row], Path], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "label-studio": _write_json,
}
SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "label-studio": ".json"}
