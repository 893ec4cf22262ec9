"""Writes files so that a crash never leaves half a file, and explains which file cannot be read."""

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


# Private folder in `output_dir`. The trainer uploads `output_dir` to the hub without files that begin with `_`, see
# `Trainer.push_to_hub`.
PRIVATE_FOLDER = "_pivottrace"


@contextmanager
def reading(path: Path, fix: str) -> Iterator[None]:
    """
    Context manager for reading a file that may be cut short, or hold something else. Any error becomes a `ValueError`
    that names the file and the fix. Only a `FileNotFoundError` is raised unchanged.
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
    Make a folder and write to it, before work is done whose results it must hold. Raises `ValueError` if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}). Name another folder.") from error


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """
    Call `write` with a temporary path in the same folder, then move that file to its place. Neither a crash nor a
    power loss leaves half a file or an empty one. If several threads or processes write the same file, the last one
    wins. The file keeps its permissions. A link is replaced, never followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    # Created exclusively, so that no existing file is overwritten. `tempfile` would ignore the umask.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        if path.is_file() and not path.is_symlink():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        write(temporary)
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name != "nt":  # folders cannot be opened on Windows
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
    """Replace NaN and infinity, which JSON does not have, by `None`, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush(path: Path, flags: int) -> None:
    """Wait until the data is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
