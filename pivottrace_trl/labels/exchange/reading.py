"""
Reads rows of untrusted files one at a time. Each item is a row, or says why it is not a row. No file takes more memory
than the limits here.
"""

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from .exporting import Row, unguard_cell


# Characters of a cell, such as an answer with the work before it.
_MAX_CELL_LENGTH = 100_000
# Characters of a JSON line, and of a CSV row. A quote that is never closed would make one row of the rest of the file.
_MAX_LINE_LENGTH = 10_000_000
_MAX_RECORD_LENGTH = 40_000_000
# Bytes of a file with a single JSON value, which is read as a whole and takes up to 24 times as much memory.
_MAX_JSON_BYTES = 64_000_000
# Bytes of a column and of a batch of Parquet, uncompressed. A few bytes can stand for any number of equal values.
_MAX_PARQUET_BYTES = 256_000_000
_MAX_PARQUET_BATCH_BYTES = 64_000_000
_MAX_PARQUET_ROWS = 10_000_000
_PARQUET_COLUMNS = ("prompt_id", "answer", "author", "price")


# Characters that end a cell, by the separator of the table.
_MARKS = {delimiter: re.compile(rf"[{delimiter}\r\n\"]") for delimiter in ",;\t"}


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a file with its number, from 1 without the header of a table; or the reason why it is not a row."""

    number: int
    row: Row = field(default_factory=dict)
    error: str | None = None


def read_items(path: Path, is_prompt_id: Callable[[str], bool]) -> Iterator[Item]:
    """
    Read a `.jsonl`, `.json`, `.csv` or `.parquet` file row by row. `is_prompt_id` recognises ids of the pool, which
    reveal a row inside a cell.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read at all, or no further.
    """
    suffix = path.suffix.lower()
    if suffix not in (known := [".csv", ".json", ".jsonl", ".parquet"]):
        raise ValueError(f"{path} ends in {path.suffix!r}, but answers are read from {known} files.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    number = 0
    try:
        if suffix == ".csv":
            rows = _read_csv(path, is_prompt_id)
        else:
            rows = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[suffix](path)
        for number, (row, error) in enumerate(rows, start=1):
            yield _limited(Item(number, row, error))
    except (ValueError, csv.Error, RecursionError, OSError, pa.ArrowException) as error:
        fate = f"It was read up to row {number}: mend it and import it again." if number else "Nothing was imported."
        raise ValueError(
            f"{path} cannot be read as a {path.suffix} file ({str(error)[:300]}). {fate} Texts must be UTF-8."
        ) from error


def _limited(item: Item) -> Item:
    """The item with long texts cut short, since many items are held at a time."""
    lengths = {name: len(value) for name, value in item.row.items() if isinstance(value, str)}
    if not lengths or max(lengths.values()) <= _MAX_CELL_LENGTH:
        return item
    long = {name: length for name, length in lengths.items() if length > _MAX_CELL_LENGTH}
    row = {**item.row, **{name: f"{item.row[name][:200]}... ({length:,} characters)" for name, length in long.items()}}
    error = item.error
    for name in long:
        if name != "prompt" and error is None:
            error = f"`{name}` has {long[name]:,} characters, more than {_MAX_CELL_LENGTH:,}"
    return Item(item.number, row, error)


_Rows = Iterator[tuple[Row, str | None]]


def _read_jsonl(path: Path) -> _Rows:
    # Bytes that are no UTF-8 spoil their own row only.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(iter(lambda: _read_line(file, _MAX_LINE_LENGTH), ""), start=1):
            if not line.strip():
                continue
            if len(line) > _MAX_LINE_LENGTH:
                yield {"line": line}, f"line {number} has more than {_MAX_LINE_LENGTH:,} characters"
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # a broken line must not affect the others
                row = None
            yield (row, None) if isinstance(row, dict) else ({"line": line}, f"line {number} is no JSON object")


def _read_json(path: Path) -> _Rows:
    if (size := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(
            f"it has {size:,} bytes, more than {_MAX_JSON_BYTES:,}: make JSON Lines of it, "
            f"`jq -c '.[]' {path.name} > {path.stem}.jsonl`"
        )
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it is no list of rows or tasks")
    for row in rows:
        yield (row, None) if isinstance(row, dict) else ({"line": repr(row)[:200]}, "it is no JSON object")


def _read_csv(path: Path, is_prompt_id: Callable[[str], bool]) -> _Rows:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_cells_allowed():
        lines = _Lines(file)
        names, error = lines.next_record()
        if error or not names or any("\udc80" <= character <= "\udcff" for name in names for character in name):
            raise ValueError(error or "it has no header in UTF-8")
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise ValueError(f"its header holds {twice[0]!r} twice, so that one column would hide the other")
        while lines.peek():
            cells, error = lines.next_record(is_prompt_id)
            if cells == [] and error is None:  # a blank line
                continue
            place = f"line {lines.start}"
            if error is None and (len(cells) < len(names) or any(cells[len(names) :])):
                cells, error = [], f"{place} has {len(cells)} cells, but the header has {len(names)}"
            row = {
                name: unguard_cell(cell) if cell.startswith("'") else cell
                for name, cell in zip(names, cells, strict=False)
                if name
            }
            yield row if cells else {"line": lines.text}, error


class _Lines:
    """The lines of a CSV file as records. A broken record costs only its first line."""

    def __init__(self, file: TextIO):
        self._file = file
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._length = 0
        self._number = 0
        self.start = 0
        self.text = ""
        # Spreadsheets in many countries write semicolons.
        self._delimiter = max(_MARKS, key=self.peek().count)
        self._records = self._parse()

    def _parse(self) -> Iterator[list[str]]:
        return csv.reader(self._take(), delimiter=self._delimiter, strict=True)

    def _take(self) -> Iterator[str]:
        while line := self.peek():
            self._length += len(line)
            if self._length > _MAX_RECORD_LENGTH:
                raise csv.Error(f"more than {_MAX_RECORD_LENGTH:,} characters")
            self._taken.append(self._again.popleft())
            yield line

    def peek(self) -> str:
        """The next line without consuming it; "" at the end."""
        if not self._again and (line := _read_line(self._file, _MAX_RECORD_LENGTH)):
            self._again.append(line)
        return self._again[0] if self._again else ""

    def next_record(self, is_prompt_id: Callable[[str], bool] = lambda text: False) -> tuple[list[str], str | None]:
        """The cells of the record that begins at line `start`; or what is wrong with that line, which is `text`."""
        if (line := self.peek()) and '"' not in line and len(line) <= _MAX_RECORD_LENGTH:
            self._again.popleft()
            self._number += 1
            self.start, self.text = self._number, line.rstrip("\r\n")
            return self.text.split(self._delimiter) if self.text else [], None
        taken = self._taken = []
        self._length = 0
        self.start = self._number + 1
        try:
            cells = next(self._records, [])
            error = None
            if sum(line.count('"') for line in taken) % 2:
                error = "a single quote"
            # A later quote may seem to close it. Then a cell contains cells of another row.
            marks = _MARKS[self._delimiter]
            parts = [marks.split(cell) for cell in cells if marks.search(cell)]
            if swallowed := [part for inner in parts for part in inner if is_prompt_id(part)]:
                error = f"the row would hold that of {swallowed[0]}"
        except csv.Error as failure:
            cells, error = [], str(failure)
            self._records = self._parse()  # the former one has ended
            if not taken:  # a single line that is too long
                taken.append(self._again.popleft())
        self._number += len(taken)
        self.text = "".join(taken).rstrip("\r\n")
        if error is None:
            return cells, None
        self._again.extendleft(reversed(taken[1:]))
        self._number = self.start
        self.text = taken[0].rstrip("\r\n")
        return [], f"line {self.start} opens or closes a quote wrongly ({error}); the lines after it are read anew"


def _read_line(file: TextIO, limit: int) -> str:
    """The next line, or the first `limit + 1` characters of one that is longer than `limit`."""
    line = rest = file.readline(limit + 1)
    while len(rest) > limit and not rest.endswith(("\n", "\r")):
        rest = file.readline(limit + 1)
    return line


@contextmanager
def _long_cells_allowed() -> Iterator[None]:
    before = csv.field_size_limit(_MAX_RECORD_LENGTH)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> _Rows:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = [name for name in _PARQUET_COLUMNS if name in schema.names]
        if not {"prompt_id", "answer"} <= set(names):
            raise ValueError(f"it has no columns `prompt_id` and `answer`, only {sorted(schema.names)[:20]}")
        for name in names:
            if pa.types.is_nested(kind := schema.field(name).type):
                raise ValueError(f"its column `{name}` holds {str(kind):.100}, but must hold texts or numbers")
        metadata = file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        num_rows = sum(group.num_rows for group in groups)
        if num_rows > _MAX_PARQUET_ROWS:
            raise ValueError(f"it says that it has {num_rows:,} rows, more than {_MAX_PARQUET_ROWS:,}")
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        largest = max((c.total_uncompressed_size for c in columns if c.path_in_schema in names), default=0)
        if largest > _MAX_PARQUET_BYTES:
            raise ValueError(
                f"a column takes {largest:,} bytes uncompressed, more than {_MAX_PARQUET_BYTES:,}: write smaller row "
                "groups"
            )
        # No value is larger than its column, even if a dictionary or a prefix repeats it many times.
        batch_size = max(1, min(1000, _MAX_PARQUET_BATCH_BYTES // max(largest, 1)))
        for batch in file.iter_batches(batch_size, columns=names, use_threads=False):
            rows: list[dict[str, Any]] = batch.to_pylist()
            yield from ((row, None) for row in rows)
