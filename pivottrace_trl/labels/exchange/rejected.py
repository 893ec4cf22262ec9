"""The file of rejected rows."""

import filecmp
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .exporting import Row
from .reading import Item


class RejectedFile:
    """
    A file of rejected rows with the reasons, beside the file that they come from. Its name contains a digest of its
    content, so that it never replaces another file, or one that somebody has begun to correct. Use it as a context
    manager. `finish` sets `path` if there are any rows.
    """

    def __init__(self, source: Path):
        self.num_rows = 0
        self.path: Path | None = None
        self._source = source
        self._temporary = source.with_name(f".{source.name}.rejected.{os.getpid()}")
        try:
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise ValueError(
                f"Rejected rows of {source} are written beside it, but {source.parent} cannot be written "
                f"({error.strerror}). Copy the file to a folder of yours."
            ) from error

    def __enter__(self) -> "RejectedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, rows: Sequence[tuple[Item, str]]) -> None:
        """Write some rows, each with its reason."""
        for item, reason in sorted(rows, key=lambda pair: pair[0].number):
            row = {name: value for name, value in _plain(item.row).items() if name not in ("row", "reason")}
            line = json.dumps({"row": item.number, "reason": reason, **row}, ensure_ascii=False) + "\n"
            # Half a character, which UTF-8 cannot represent, is written as a JSON escape.
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self.num_rows += 1

    def finish(self) -> None:
        """Give the file its name, and remove unchanged files of earlier imports of the same file."""
        self._file.close()
        if self.num_rows:
            name = f"{self._source.name}.rejected-{_digest(self._temporary)}"
            path, copy = self._source.with_name(f"{name}.jsonl"), 1
            while path.exists() and not filecmp.cmp(path, self._temporary, shallow=False):
                copy += 1
                path = self._source.with_name(f"{name}-{copy}.jsonl")
            os.replace(self._temporary, path)
            self.path = path
        prefix = f"{self._source.name}.rejected-"
        for other in self._source.parent.iterdir():
            if other != self.path and other.name.startswith(prefix) and other.is_file():
                if re.fullmatch(rf"{_digest(other)}(-\d+)?\.jsonl", other.name.removeprefix(prefix)):
                    other.unlink()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:8]


def _plain(row: Row) -> Row:
    """A row with values that JSON can represent. Parquet may hold other types."""
    try:
        return json.loads(json.dumps(row, ensure_ascii=False, default=str))
    except (ValueError, RecursionError):  # too deep, or a number of too many digits
        return {name: f"{value!r:.1000}" for name, value in row.items()}
