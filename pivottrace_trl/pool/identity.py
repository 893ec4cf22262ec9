"""Prompt ids, made from the question or from a column of ids. Checks the pool along the way."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset

from .prompts import asked, build_prompt, normalised, prompt_text, without


# Ids pass through spreadsheets, which take 1234567890123456 and 12e4567890123456 for numbers, 0012 for 12, P12 for
# money and 2-3 for a date, depending on the country. A word without digits is safe everywhere.
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


@dataclass(frozen=True)
class Questions:
    """
    Finds the question of each row, whatever surrounds it. A row's id is made from its value in `id_column`; without
    that column, from its text in `question_column`; without either, from the turns of its prompt. System messages and
    the `instruction` at the beginning or the end of the user's turns do not count.
    """

    prompt_column: str = "prompt"
    id_column: str | None = None
    question_column: str | None = None
    instruction: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that identify a row."""
        names = (self.prompt_column, self.id_column, self.question_column)
        return list(dict.fromkeys(name for name in names if name is not None))

    def ids(self, dataset: Dataset) -> list[str]:
        """Check a pool and give every row its id, see [`pool_ids`]."""
        self.check(dataset)
        ids: dict[str, int] = {}
        has_instruction = self.question_column is not None or self.instruction is None
        for row, values in enumerate(_rows(dataset, self.columns)):
            prompt = values[self.prompt_column]
            _check_prompt(row, prompt)
            if not has_instruction:
                has_instruction = asked(prompt) != asked(prompt, self._take_off)
            identity = self.id(row, values)
            if identity in ids:
                raise ValueError(self._say_twice(ids[identity], row, values))
            ids[identity] = row
        if not has_instruction:
            raise ValueError(
                f"`instruction` stands at the beginning or the end of none of the {len(ids)} prompts: it is "
                f"{self.instruction!r:.200}, and the last prompt is {prompt_text(prompt)[-200:]!r}. Give the text "
                "that the script adds to every question. System prompts never count, and need not be declared."
            )
        return list(ids)

    def build_prompts(self, dataset: Dataset, system_prompt: str | None) -> Dataset:
        """The pool with its prompts passed through [`build_prompt`], if there is anything to add."""
        if self.instruction is None and system_prompt is None:
            return dataset
        self.check(dataset)

        def build(row: dict[str, Any], place: int) -> dict[str, Any]:
            prompt = row[self.prompt_column]
            _check_prompt(place, prompt)
            return {self.prompt_column: build_prompt(prompt, self.instruction, system_prompt)}

        return dataset.with_format(None).map(build, with_indices=True, desc="Building prompts")

    def text(self, row: dict[str, Any]) -> str:
        """The question of a row for people, without system prompt and instruction."""
        if self.question_column is not None:
            return row[self.question_column]
        text = prompt_text(row[self.prompt_column])
        return text if self._take_off is None else self._take_off(text).strip("\n") or text

    def check_labels(self, label_column: str | None) -> None:
        """Raise `ValueError` if ids or questions would be made of labels, as both are shown before any purchase."""
        for name in ("id_column", "question_column"):
            if label_column is not None and getattr(self, name) == label_column:
                raise ValueError(
                    f"`{name}` is the label column {label_column!r}, which would be shown without a purchase. Name a "
                    "column that tells nothing about the label."
                )

    def asked_in(self, rows: Iterable[dict[str, Any]]) -> Iterator[set[str]]:
        """
        All ids that each row's question may have in any dataset. The column of ids is ignored here, since each dataset
        has its own numbering.
        """
        for row in rows:
            prompt, question = row.get(self.prompt_column), row.get(self.question_column or "")
            keys = {_hash(normalised(question))} if isinstance(question, str) else set()
            with suppress(TypeError):  # a prompt with images has no id
                keys |= {_hash(asked(prompt, self._take_off))} if prompt else set()
            yield keys - {_hash("")}

    def arguments(self) -> str:
        """The arguments for [`drop_duplicates`] besides the datasets, as Python source."""
        told = {"prompt_column": self.prompt_column, "question_column": self.question_column}
        told |= {"instruction": self.instruction}
        return "".join(f", {name}={value!r}" for name, value in told.items() if value not in (None, "prompt"))

    def places(self, dataset: Dataset) -> dict[str, int]:
        """The row of each question of a dataset, under every id from [`asked_in`]."""
        names = [name for name in self.columns if name in dataset.column_names]
        return {key: row for row, keys in enumerate(self.asked_in(_rows(dataset, names))) for key in keys}

    @cached_property
    def _take_off(self) -> Callable[[str], str] | None:
        return None if self.instruction is None else without(self.instruction)

    def id(self, row: int, values: dict[str, Any]) -> str:
        """Id of a row from the values of its columns, see [`Questions`]; raises `ValueError` if it has none."""
        if self.id_column is not None:
            return _hash(_text_of_id(row, self.id_column, values[self.id_column]))
        if self.question_column is not None:
            question = values[self.question_column]
            if not isinstance(question, str) or not normalised(question):
                raise ValueError(
                    f"Row {row} of the pool has the question {question!r:.80} in `question_column` "
                    f"{self.question_column!r}, which is no text, or an empty one. Filter such rows out, or name "
                    "another column."
                )
            return _hash(normalised(question))
        prompt = values[self.prompt_column]
        try:
            if question := asked(prompt, self._take_off):
                return _hash(question)
        except TypeError as error:
            raise ValueError(
                f"Row {row} of the pool has a prompt that holds more than texts and numbers ({error}), which has no "
                "id. Name a column that tells the rows apart: `id_column=`."
            ) from error
        raise ValueError(
            f"Row {row} of the pool has a prompt without a question ({prompt!r:.80}): there is nothing but "
            "white space, or the instruction. Filter such rows out, or correct `instruction`."
        )

    def check(self, dataset: Dataset) -> None:
        """Raise if this is not a pool, or a column is missing, before any row is read."""
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"The pool is a `{type(dataset).__name__}`, but ranking it needs a `datasets.Dataset`, which can be "
                "indexed. Load it without `streaming=True`, or collect a part of it: "
                "`Dataset.from_list(list(dataset.take(10_000)))`."
            )
        if dataset.format["type"] == "custom":
            raise ValueError(
                "The pool has a transform (`set_transform`, `with_transform`), which makes columns only when a row is "
                "read, so columns with labels cannot be hidden beforehand. Apply it once: "
                "`dataset.with_format(None).map(transform, batched=True)`."
            )
        if self.prompt_column not in dataset.column_names:
            raise ValueError(
                f"The pool has no column {self.prompt_column!r}, only {dataset.column_names}. Name the one that holds "
                "the prompts: `prompt_column=`."
            )
        for argument, name in (("id_column", self.id_column), ("question_column", self.question_column)):
            if name is not None and name not in dataset.column_names:
                raise ValueError(
                    f"`{argument}` is {name!r}, but the pool has only {dataset.column_names}. Name one of them, or "
                    "leave it out: a prompt's id is then that of its question."
                )
        if len(dataset) == 0:
            raise ValueError("The pool is empty: 0 rows. Check the split and the filters that made it.")

    def _say_twice(self, first: int, row: int, values: dict[str, Any]) -> str:
        if self.id_column is not None:
            return (
                f"Rows {first} and {row} of the pool have the same value {values[self.id_column]!r:.80} in "
                f"`id_column` {self.id_column!r}. Answers would go to the wrong prompt. Give every row a different "
                "value, or leave `id_column` out: a prompt's id is then that of its question."
            )
        return (
            f"Rows {first} and {row} of the pool hold the same prompt: {self.text(values)[:80]!r}. A label would be "
            "bought twice. Drop duplicates first: `from pivottrace_trl import drop_duplicates; dataset = "
            f"drop_duplicates(dataset{self.arguments()})`."
        )


def pool_ids(
    dataset: Dataset,
    prompt_column: str = "prompt",
    *,
    id_column: str | None = None,
    question_column: str | None = None,
    instruction: str | None = None,
) -> list[str]:
    """
    Check a pool and give every prompt its id.

    Args:
        dataset ([`~datasets.Dataset`]):
            The pool.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        id_column (`str`, *optional*):
            Column of texts or whole numbers, different in each row. Ids are made of them, whatever the prompts say.
        question_column (`str`, *optional*):
            Column that holds the bare questions. Without an `id_column`, ids are made of them.
        instruction (`str`, *optional*):
            Text at the beginning or the end of every prompt, besides its question. Without the columns above, ids are
            made of the prompts without it and without system messages.

    Returns:
        `list[str]`: one id per row, see [`prompt_id`].

    Raises:
        TypeError: if the dataset cannot be indexed.
        ValueError: if the pool is empty, has a transform or lacks a column; if a prompt, question or id is empty or
            occurs twice; if a prompt is neither a text nor a conversation; or if no prompt has the instruction.
    """
    return Questions(prompt_column, id_column, question_column, instruction).ids(dataset)


def prompt_id(prompt: Any) -> str:
    """
    Stable id of a prompt's question. It does not depend on the order of the pool, on other columns, on system prompts,
    on indentation that all lines share, or on white space around the text and at the end of lines. Spacing within
    lines and relative indentation do count. A conversation with a single user message has the id of its text.

    Args:
        prompt (`str` or `list[dict]`):
            Plain text, or a conversation as TRL has it.

    Returns:
        `str`: the first 64 bits of the SHA-256 of the normalised question, as 16 letters from a to p.
    """
    return _hash(asked(prompt))


def _hash(question: Any) -> str:
    text = question if isinstance(question, str) else json.dumps(question, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16].translate(_LETTERS)


def _text_of_id(row: int, column: str, value: Any) -> str:
    """Convert a value of an id column to text. Tables with gaps store whole numbers as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = normalised(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text:
        raise ValueError(
            f"Row {row} of the pool has the value {value!r:.80} in `id_column` {column!r}, a "
            f"`{type(value).__name__}`, but an id must be a text or a whole number, and not empty. Fill the column "
            "with `dataset.map`, or filter such rows out."
        )
    return text


def _check_prompt(row: int, prompt: Any) -> None:
    """Raise `ValueError` if this is empty, or neither a text nor a conversation."""
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


def _rows(dataset: Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The values of some columns as Python objects, row by row."""
    plain = dataset.with_format(None)
    values = (plain[name] for name in columns)
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def pool_fingerprint(prompt_ids: Iterable[str]) -> str:
    """Identify a pool by its prompts, in any order: 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(prompt_ids)).encode()).hexdigest()[:16]


def drop_duplicates(
    dataset: Dataset,
    prompt_column: str = "prompt",
    seen_in: Dataset | None = None,
    *,
    question_column: str | None = None,
    instruction: str | None = None,
) -> Dataset:
    """
    Keep the first row of each question.

    Args:
        dataset ([`~datasets.Dataset`]):
            A pool that may contain questions more than once.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        seen_in ([`~datasets.Dataset`], *optional*):
            Another dataset, such as the training pool of an evaluation set. Rows whose question occurs there are
            dropped too, whatever their system prompt.
        question_column (`str`, *optional*):
            Column that holds the bare questions, in datasets that have it.
        instruction (`str`, *optional*):
            Text at the beginning or the end of prompts, besides their question.

    Returns:
        [`~datasets.Dataset`]: the first row of each question, in the same order.

    Raises:
        ValueError: if `seen_in` has none of these columns, or a row has no question.
    """
    questions = Questions(prompt_column, None, question_column, instruction)
    if seen_in is not None and set(questions.columns).isdisjoint(seen_in.column_names):
        raise ValueError(
            f"`seen_in` has none of the columns {questions.columns}, only {seen_in.column_names}, so its questions "
            "are unknown. Rename the column that holds its prompts: `seen_in.rename_column(..., "
            f"{prompt_column!r})`."
        )
    seen = set() if seen_in is None else set(questions.places(seen_in))
    if question_column not in dataset.column_names:
        questions = Questions(prompt_column, None, None, instruction)
    first_rows: dict[str, int] = {}
    for row, values in enumerate(_rows(dataset, questions.columns)):
        _check_prompt(row, values[prompt_column])
        if not seen or seen.isdisjoint(*questions.asked_in([values])):
            first_rows.setdefault(questions.id(row, values), row)
    return dataset.select(list(first_rows.values()))
