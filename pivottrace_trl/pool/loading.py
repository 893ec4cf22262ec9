"""Where a pool comes from, and its rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..files import reading


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_rows(dataset: Dataset, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of a dataset, a thousand at a time: one by one takes five times as long, all at once all the memory."""
    for start in range(0, len(rows), 1000):
        columns = dataset[[int(row) for row in rows[start : start + 1000]]]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def load_pool(source: str, split: str = "train", config_name: str | None = None, limit: int | None = None) -> Dataset:
    """
    Load a pool, or its first `limit` rows, from a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder (saved with
    `save_to_disk`, or of data files), or the hub. `split` and `config_name` are those of a folder or a hub dataset.
    """
    path = Path(source)
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}, but must be at least 1.")
    if path.suffix in _FORMATS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {source}.")
        with _reading(path, f"Save it again as UTF-8 {path.suffix[1:]} with one row per prompt."):
            dataset = load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train")
    elif path.is_file():
        raise ValueError(f"{source} ends in {path.suffix!r}, but a pool file must end in one of {sorted(_FORMATS)}.")
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        with reading(path, "Save it again with `save_to_disk`, or name one of its splits with --split."):
            loaded = load_from_disk(source)
            dataset = loaded if isinstance(loaded, Dataset) else loaded[split]
    elif path.is_dir():
        with _reading(path, "Name a folder that holds nothing but data files with the same columns, or one file."):
            dataset = load_dataset(source, config_name, split=split)
    else:
        try:
            dataset = load_dataset(source, config_name, split=split)
        except OSError as error:
            raise FileNotFoundError(f"There is no file or folder {source}, and the hub gave none: {error}") from error
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """Say of data files what is wrong with them, and not that something is."""
    with reading(path, advice):
        try:
            yield
        except DatasetsError as error:
            raise ValueError(error.__cause__ or error) from error
        except StopIteration as error:
            raise ValueError("it holds no rows") from error
