"""Pools from files, folders and the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from .files import reading


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_pool(source: str, split: str = "train", config_name: str | None = None, limit: int | None = None) -> Dataset:
    """
    Load a pool.

    Args:
        source (`str`):
            A `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder (saved with `save_to_disk`, or of data files), or
            the id of a dataset on the hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a folder or hub dataset.
        config_name (`str`, *optional*):
            Configuration of a hub dataset.
        limit (`int`, *optional*):
            Number of first rows to keep.

    Returns:
        [`~datasets.Dataset`]

    Raises:
        ValueError: for an unknown file format, a file that cannot be read, or a limit below 1.
        FileNotFoundError: if there is nothing of that name, neither here nor on the hub.
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
