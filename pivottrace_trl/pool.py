"""The pool of prompts: where it comes from, identity, validation. Knows no labels."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from .files import reading


# Ids pass through spreadsheets, which take 1234567890123456 and 12e4567890123456 for numbers, 0012 for 12, P12 for
# money and 2-3 for a date, each country in its own way. A word without a digit is none of these anywhere.
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def _check_prompt(row: int, prompt: Any) -> None:
    """Raise `ValueError` if this is neither a text nor a conversation, or an empty one."""
    is_text = isinstance(prompt, str)
    is_conversation = isinstance(prompt, list) and all(_is_message(message) for message in prompt)
    if prompt is not None and not is_text and not is_conversation:
        raise ValueError(
            f"Row {row} of the pool has the prompt {prompt!r:.80}, a `{type(prompt).__name__}`, which is neither a "
            'text nor a conversation, `[{"role": "user", "content": ...}]`. Rewrite the column with `dataset.map`.'
        )
    if not prompt or (is_text and not prompt.strip()):
        raise ValueError(f"Row {row} of the pool has an empty prompt ({prompt!r:.80}). Filter such rows out.")


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or "content" not in message:
        return False
    content = message["content"]
    is_in_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    return content is None or isinstance(content, str) or is_in_parts


def prompt_id(prompt: Any) -> str:
    """
    Stable id of a prompt: survives reordering, other columns, restarts, and differences in white space. A conversation
    of a single user message has the id of its text.

    Args:
        prompt (`str` or `list[dict]`):
            Plain text, or a conversation as TRL has it.

    Returns:
        `str`: 64 bits of the SHA-256 of the normalised prompt as 16 letters from a to p.
    """
    text = prompt
    if not isinstance(prompt, str):
        is_plain = len(prompt) == 1 and prompt[0].get("role") == "user" and isinstance(prompt[0].get("content"), str)
        text = prompt[0]["content"] if is_plain else json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(normalised.encode()).hexdigest()[:16].translate(_LETTERS)


def prompt_text(prompt: Any) -> str:
    """Text of a prompt for people: the last user message of a conversation, or the plain prompt."""
    if isinstance(prompt, str):
        return prompt
    user_messages = [message["content"] for message in prompt if message.get("role") == "user"]
    content = (user_messages or [message["content"] for message in prompt])[-1]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def question_id(prompt: Any) -> str:
    """Id of what a prompt asks, under whatever system prompt: [`prompt_id`] without its system messages."""
    if isinstance(prompt, str):
        return prompt_id(prompt)
    asked = [message for message in prompt if message.get("role") not in ("system", "developer")]
    return prompt_id(asked or prompt)


def pool_ids(dataset: Dataset, prompt_column: str = "prompt") -> list[str]:
    """
    Check a pool and give every prompt its id.

    Args:
        dataset ([`~datasets.Dataset`]):
            The pool.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.

    Returns:
        `list[str]`: one id per row.

    Raises:
        TypeError: if the dataset cannot be indexed.
        ValueError: if it is empty, has a transform, no such column, an empty prompt, a prompt that is no text and no
            conversation, or the same prompt twice.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"The pool is a `{type(dataset).__name__}`, but ranking it needs a `datasets.Dataset`, which can be "
            "indexed. Load it without `streaming=True`, or collect a part of it: "
            "`Dataset.from_list(list(dataset.take(10_000)))`."
        )
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The pool has a transform (`set_transform`, `with_transform`), which makes columns only when a row is "
            "read, so that nobody can say beforehand which of them tell the label. Apply it once: "
            "`dataset.with_format(None).map(transform, batched=True)`."
        )
    if prompt_column not in dataset.column_names:
        raise ValueError(
            f"The pool has no `{prompt_column}` column, only {dataset.column_names}. Rename the column that holds the "
            f"prompts: `dataset.rename_column(..., {prompt_column!r})`, or name it with --prompt-column."
        )
    if len(dataset) == 0:
        raise ValueError("The pool is empty: 0 rows. Check the split and the filters that made it.")
    ids = []
    first_row: dict[str, int] = {}
    for row, prompt in enumerate(dataset.with_format(None)[prompt_column]):
        _check_prompt(row, prompt)
        identity = prompt_id(prompt)
        if identity in first_row:
            raise ValueError(
                f"Rows {first_row[identity]} and {row} of the pool hold the same prompt: "
                f"{prompt_text(prompt)[:80]!r}. A label would be bought twice. Drop duplicates first: `from "
                "pivottrace_trl import drop_duplicates; dataset = drop_duplicates(dataset)`."
            )
        first_row[identity] = row
        ids.append(identity)
    return ids


def read_rows(dataset: Dataset, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of a dataset, a thousand at a time: one by one takes five times as long, all at once all the memory."""
    for start in range(0, len(rows), 1000):
        columns = dataset[[int(row) for row in rows[start : start + 1000]]]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def pool_fingerprint(prompt_ids: Sequence[str]) -> str:
    """Identify a pool by its prompts, whatever their order: 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(prompt_ids)).encode()).hexdigest()[:16]


def drop_duplicates(dataset: Dataset, prompt_column: str = "prompt", seen_in: Dataset | None = None) -> Dataset:
    """
    Keep the first row of each prompt.

    Args:
        dataset ([`~datasets.Dataset`]):
            A pool that may hold a prompt twice.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        seen_in ([`~datasets.Dataset`], *optional*):
            Another dataset, whose prompts are dropped altogether, under whatever system prompt: a pool that this
            evaluation set must not share prompts with.

    Returns:
        [`~datasets.Dataset`]
    """
    seen = set() if seen_in is None else {question_id(prompt) for prompt in seen_in[prompt_column]}
    first_rows: dict[str, int] = {}
    for row, prompt in enumerate(dataset[prompt_column]):
        if not seen or question_id(prompt) not in seen:
            first_rows.setdefault(prompt_id(prompt), row)
    return dataset.select(list(first_rows.values()))


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
