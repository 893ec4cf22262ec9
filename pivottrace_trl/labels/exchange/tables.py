"""A dataset as a file: JSON Lines, CSV or Parquet, a part at a time."""

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...files import replace_atomically
from .exporting import guard_cell


_BATCH_SIZE = 1000


def write_dataset(dataset: Dataset, path: Path, file_format: str) -> None:
    """Write all rows, or if it fails leave what was there. In CSV what is no text or number is written as JSON."""
    if file_format not in _WRITERS:
        raise ValueError(
            f"`--format {file_format}` is for questions. Labels and routes are written as {', '.join(_WRITERS)}."
        )
    replace_atomically(path, lambda temporary: _WRITERS[file_format](dataset, temporary))


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for start in range(0, len(dataset), _BATCH_SIZE):
        batch = dataset[start : start + _BATCH_SIZE]
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _write_jsonl(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps(row, ensure_ascii=False, default=datetime.isoformat) + "\n" for row in _rows(dataset)
        )


def _write_csv(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(dataset.column_names)
        writer.writerows([_cell(value) for value in row.values()] for row in _rows(dataset))


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        value = json.dumps(value, ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime) else guard_cell(value)


def _write_parquet(dataset: Dataset, path: Path) -> None:
    dataset.to_parquet(str(path))


_WRITERS: dict[str, Callable[[Dataset, Path], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
