"""Writing files so that a crash never leaves half of one, and reading those that something else damaged."""

import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


# Folder in `output_dir` for what is private. The trainer uploads `output_dir` to the hub, but nothing that begins like
# this: see `Trainer.push_to_hub`.
PRIVATE_FOLDER = "_pivottrace"


@contextmanager
def reading(path: Path, fix: str) -> Iterator[None]:
    """
    Say which file cannot be read, whatever a parser says about it, and how to mend that: a file may be cut short, or
    hold something else. A file that does not exist stays a `FileNotFoundError`; anything else becomes a `ValueError`.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        OSError,
        pa.ArrowException,
    ) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}). {fix}") from error


def check_writable(folder: Path) -> None:
    """
    Make a folder and write to it, before work is done whose result would not find a place; `ValueError` if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}). Name another folder.") from error


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """
    Write a file beside its place, through the path that `write` is given, and move it there. Neither a crash nor a
    power loss leaves half of one or an empty one, and threads and processes that write the same file do not meet: the
    last one wins. A file keeps the permissions that it had. A link is replaced, never followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    # Made here, so that nothing that lies there already is written to; `tempfile` would ignore the umask.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        if path.is_file() and not path.is_symlink():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        write(temporary)
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name != "nt":  # Windows has no folders that can be opened
        _flush(path.parent, os.O_RDONLY)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, see [`replace_atomically`]."""
    text = json.dumps(value, indent=1) + "\n"
    replace_atomically(path, lambda temporary: temporary.write_text(text))


def write_parquet(path: Path, columns: pa.Table | Mapping[str, Any]) -> None:
    """Write a table as Parquet, see [`replace_atomically`]."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    replace_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def without_nan(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity: they become `None`, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush(path: Path, flags: int) -> None:
    """Wait until what was written is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
