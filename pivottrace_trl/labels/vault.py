"""Hides what a dataset holds besides the prompts, above all the labels."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset

from ..pool import read_rows
from .queries import Answer, Query, is_empty
from .state import LedgerView


# Roles that ask. A message of any other role may be the beginning of the response.
_ASKING_ROLES = ("system", "developer", "user", "tool")
# Words that announce an answer at the end of a text, and what may follow the answer.
_MARKER = re.compile(
    r"(?:\b(?:answers?|solutions?|labels?|ground.?truth|gold)\b|####|\\boxed\s*\{)"
    r"\W*(?:(?:is|are|was|be)\b\W*)?(?:[a-z]\s*=\W*)?$",
    re.IGNORECASE,
)
_ENDING, _CLOSING_TAG = " .,;}])$*\"'`\\", re.compile(r"</\w{1,40}>$")
_LONGEST_MARKER = 60
# A label with this many characters or more does not occur in a prompt by accident.
_LONG_LABEL = 32


class LabelVault:
    """
    Hides the labels of a dataset, and every column that might reveal them. It is an oracle: only
    [`AnnotationLedger.buy`] asks it, and only for rows that are paid for. The other columns of a row are returned once
    its label is in the ledger.

    Args:
        dataset ([`~datasets.Dataset`]):
            The pool with its labels. It is not copied.
        label_columns (`Sequence[str]`):
            Columns that are sold; the first holds the label.
        prompt_ids (`Sequence[str]`):
            Id of each row.
        locked_columns (`Sequence[str]`, *optional*):
            Columns that are not sold, but might reveal the label.
    """

    author = "dataset"
    # Each batch is one write to the disk. The vault can repeat its answers at no cost, so a crash may lose a large
    # one.
    batch_size = 1024

    def __init__(
        self,
        dataset: Dataset,
        label_columns: Sequence[str],
        prompt_ids: Sequence[str],
        locked_columns: Sequence[str] = (),
    ):
        plain = dataset.with_format(None)  # Python objects, whatever the format of the dataset
        self._label_columns = list(label_columns)
        self._labels, self._locked = plain.select_columns(self._label_columns), None
        if locked_columns:
            self._locked = plain.select_columns(list(locked_columns))
        self._row = {identity: row for row, identity in enumerate(prompt_ids)}

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """
        Return the labels of some prompts.

        Args:
            queries (`Sequence[Query]`):
                The queries.

        Returns:
            `list[Answer]`: one per query. A row whose first label column is empty has the label `None`.
        """
        answers = []
        prompt_ids = [query.prompt_id for query in queries]
        for identity, label in zip(prompt_ids, self._read(self._labels, prompt_ids), strict=True):
            # NaN means an empty field in tables, and JSON cannot represent it.
            label = {name: None if value != value else value for name, value in label.items()}
            has_none = is_empty(label[self._label_columns[0]])
            answers.append(Answer(identity, None if has_none else label, self.author))
        return answers

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._row

    @property
    def prompt_ids(self) -> list[str]:
        """Ids of the rows."""
        return list(self._row)

    @cached_property
    def num_labels(self) -> int:
        """Number of rows with a label. The labels themselves stay in the vault."""
        if not self._label_columns:
            return 0
        name = self._label_columns[0]
        batches = self._labels.select_columns(name).iter(batch_size=1000)
        return sum(not is_empty(label) for batch in batches for label in batch[name])

    def unlock(self, ledger: LedgerView, prompt_ids: Sequence[str]) -> list[dict[str, Any]]:
        """
        Return the locked columns of rows whose label was bought.

        Args:
            ledger ([`LedgerView`]):
                What was bought.
            prompt_ids (`Sequence[str]`):
                The rows.

        Returns:
            `list[dict[str, Any]]`: column -> value for each row.

        Raises:
            ValueError: if the label of a row was not bought.
        """
        if unpaid := [identity for identity in prompt_ids if ledger.label(identity) is None]:
            raise ValueError(f"The label of prompt {unpaid[0]!r} was not bought, so its row stays locked.")
        return [{} for _ in prompt_ids] if self._locked is None else self._read(self._locked, prompt_ids)

    def find_given_away(self, prompts: Sequence[Any]) -> list[int]:
        """
        Find rows whose prompt holds its own label, see [`gives_away`]. Only the row numbers leave the vault.

        Args:
            prompts (`Sequence`):
                The prompts of all rows, plain or conversational.

        Returns:
            `list[int]`: row numbers, from 0.
        """
        if not self._label_columns:
            return []
        labels = self._labels[self._label_columns[0]]
        found = [
            (row, text)
            for row, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
            for text in gives_away(prompt, label)
        ]
        # A text that rows with other labels also have, such as an example or the beginning of every response, does
        # not reveal a label.
        labels_of: dict[str, set[str]] = {text: set() for _, text in found}
        if found:
            for prompt, label in zip(prompts, labels, strict=True):
                for _, text in messages(prompt):
                    if text in labels_of:
                        labels_of[text].add(str(label))
        return sorted({row for row, text in found if len(labels_of[text]) == 1})

    def _read(self, dataset: Dataset, prompt_ids: Sequence[str]) -> list[dict[str, Any]]:
        return list(read_rows(dataset, [self._row[identity] for identity in prompt_ids]))


def messages(prompt: Any) -> Iterator[tuple[str, str]]:
    """Role and text of every message of a prompt. A plain text counts as a user message."""
    if isinstance(prompt, str):
        yield "user", prompt
        return
    for message in prompt:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content or ()]
        others = [message.get(name) or "" for name in ("reasoning_content", "thinking")]
        yield message.get("role") or "user", "\n".join(text for text in [*others, *parts] if text)


def gives_away(prompt: Any, label: Any) -> list[str]:
    """
    Texts of a prompt that hold its label as an answer. Questions contain short labels by accident ("What is 5 - 0?"),
    and choices and passages naturally contain longer ones. A text therefore counts only if

    - it is the last message, from an assistant, and contains the label as a separate word,
    - or it ends with the label, after words that announce an answer: `Answer:`, `the solution is`, `####`, `\\boxed{`,
    - or it contains a label of 32 characters or more.

    Args:
        prompt (`str` or `list[dict]`):
            Plain text, or a conversation in TRL's format.
        label (`Any`):
            A text, a number, or a list of them.

    Returns:
        `list[str]`
    """
    wanted = [_without_ending(" ".join(str(part).split())).lstrip("$ ") for part in _parts(label)]
    wanted = [part for part in wanted if part]
    turns = list(messages(prompt))
    found = []
    for place, (role, text) in enumerate(turns):
        plain = " ".join(text.split())
        end = _without_ending(plain)
        is_response = role not in _ASKING_ROLES and place == len(turns) - 1
        for part in wanted:
            is_long = len(part) >= _LONG_LABEL and part in plain
            before = end[max(0, len(end) - len(part) - _LONGEST_MARKER) : len(end) - len(part)]
            is_announced = end.endswith(part) and _MARKER.search(before)
            if is_long or is_announced or (is_response and _has_word(plain, part)):
                found.append(text)
                break
    return found


def _without_ending(text: str) -> str:
    """A text without what may follow an answer: punctuation and closing tags."""
    while True:
        end = text.rstrip(_ENDING)
        if (tag := _CLOSING_TAG.search(end[-_LONGEST_MARKER:])) is None:
            return end
        text = end[: len(end) - len(tag[0])]


def _parts(label: Any) -> list[Any]:
    if isinstance(label, list):
        return [part for item in label for part in _parts(item)]
    return [] if label is None else [label]


def _has_word(text: str, word: str) -> bool:
    """Whether a text contains a word or number on its own: neither 15 nor 5.2 contains 5."""
    return re.search(rf"(?<!\w)(?<!\d\.){re.escape(word)}(?!\w)(?!\.\d)", text) is not None
