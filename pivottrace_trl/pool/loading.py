"""Loading a pool, and reading its rows."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..files import reading


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_rows(dataset: Dataset, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """
    Iterate over rows of a dataset. They are read in thousands: one by one takes five times as long, and all at once
    may fill the memory.
    """
    for start in range(0, len(rows), 1000):
        columns = dataset[[int(row) for row in rows[start : start + 1000]]]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def collect_stream(stream: IterableDataset) -> Dataset:
    """
    Copy the rows of a stream to a dataset that can be indexed. They are read once, a thousand in memory at a time,
    into a folder that is deleted when the process ends, as the rows may hold labels.
    """
    folder = tempfile.mkdtemp(prefix="pivottrace-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows: Any = partial(iter, stream)
    return Dataset.from_generator(rows, features=stream.features, cache_dir=folder)


def load_pool(
    source: str,
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
    streaming: bool = False,
) -> Dataset:
    """
    Load a pool, or its first `limit` rows, from a `.jsonl`, `.json`, `.csv` or `.parquet` file, from a folder (saved
    with `save_to_disk`, or of data files), or from the hub. `split` and `config_name` apply to folders and hub
    datasets. With `streaming`, only the rows that are taken are read or downloaded.

    Raises:
        ValueError: if `limit` is below 1, or the source cannot be read as a pool.
        FileNotFoundError: if there is no such file, folder or hub dataset.
    """
    path = Path(source)
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}, but must be at least 1.")
    if path.suffix in _FORMATS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {source}.")
        with _reading(path, f"Save it again as UTF-8 {path.suffix[1:]} with one row per prompt."):
            return _load(_FORMATS[path.suffix], None, "train", limit, streaming, data_files=str(path))
    elif path.is_file():
        raise ValueError(f"{source} ends in {path.suffix!r}, but a pool file must end in one of {sorted(_FORMATS)}.")
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        with reading(path, "Save it again with `save_to_disk`, or name one of its splits: `split=`."):
            loaded = load_from_disk(source)
            return _first(loaded if isinstance(loaded, Dataset) else loaded[split], limit)
    elif path.is_dir():
        with _reading(path, "Name a folder that holds nothing but data files with the same columns, or one file."):
            return _load(source, config_name, split, limit, streaming)
    try:
        return _load(source, config_name, split, limit, streaming)
    except OSError as error:
        raise FileNotFoundError(f"There is no file or folder {source}, and the hub gave none: {error}") from error


def _load(
    source: str, config_name: str | None, split: str, limit: int | None, streaming: bool, **options: Any
) -> Dataset:
    if not streaming:
        return _first(load_dataset(source, config_name, split=split, **options), limit)
    stream = load_dataset(source, config_name, split=split, streaming=True, **options)
    return collect_stream(stream if limit is None else stream.take(limit))


def _first(dataset: Dataset, limit: int | None) -> Dataset:
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """Replace the general error of `datasets` by the one that says what is wrong with a data file."""
    with reading(path, advice):
        try:
            yield
        except DatasetsError as error:
            raise ValueError(error.__cause__ or error) from error
        except StopIteration as error:
            raise ValueError("it holds no rows") from error
