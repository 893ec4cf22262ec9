"""Labels, and what was paid for them. The only module that holds labels."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset


_SCHEMA_VERSION = 1
# Answers are committed after each batch, so that an annotator that fails loses one batch at most.
_BATCH_SIZE = 16
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE answers (
    prompt_id TEXT PRIMARY KEY,
    label TEXT,  -- JSON object, label column -> value; NULL if the annotator declined, which costs nothing
    purpose TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    answered_at TEXT NOT NULL
);
CREATE TRIGGER answers_are_final BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER answers_stay BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class Oracle(Protocol):
    """Whoever knows the labels."""

    def ask(self, prompt_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return label column -> value for each prompt, `None` where there is no answer."""
        ...


class LabelVault:
    """
    The label columns of a dataset, put away. It is an oracle: only [`AnnotationLedger.buy`] asks it, and only for the
    rows that are paid for.

    Args:
        dataset ([`~datasets.Dataset`]):
            The pool with its labels. It is referred to, not copied.
        label_columns (`Sequence[str]`):
            Columns to lock up.
        prompt_ids (`Sequence[str]`):
            Id of each row.
    """

    def __init__(self, dataset: Dataset, label_columns: Sequence[str], prompt_ids: Sequence[str]):
        self._labels = dataset.select_columns(list(label_columns))
        self._row = {identity: row for row, identity in enumerate(prompt_ids)}

    def ask(self, prompt_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the labels of these rows; `None` where every label column is empty."""
        labels = (self._labels[self._row[identity]] for identity in prompt_ids)
        return [None if all(value in (None, "") for value in label.values()) else label for label in labels]


class CallableAnnotator:
    """
    Asks a user's function for labels.

    Args:
        annotator (`Callable[[list[dict]], list]`):
            Takes rows of the pool (without label columns) and returns as many answers, `None` where it has none.
        rows (`Callable[[Sequence[str]], list[dict]]`):
            Returns the rows with the given prompt ids.
        label_column (`str`):
            Column under which the reward functions expect the answer.
    """

    def __init__(
        self,
        annotator: Callable[[list[dict[str, Any]]], Sequence[Any]],
        rows: Callable[[Sequence[str]], list[dict[str, Any]]],
        label_column: str,
    ):
        self._annotator = annotator
        self._rows = rows
        self._label_column = label_column

    def ask(self, prompt_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the annotator's answers; raises `ValueError` if there are more or fewer than questions."""
        answers = list(self._annotator(self._rows(prompt_ids)))
        if len(answers) != len(prompt_ids):
            raise ValueError(
                f"The annotator returned {len(answers)} answers for {len(prompt_ids)} rows, so that they cannot be "
                "told apart; none of this batch was recorded. Return one answer per row, `None` where there is none."
            )
        return [None if answer in (None, "") else {self._label_column: answer} for answer in answers]


class AnnotationLedger:
    """
    Append-only record of the labels that were bought, in one SQLite file, under a budget.

    Args:
        path (`str` or `Path`):
            SQLite file; made if absent, continued if it belongs to the same pool.
        budget (`int`):
            Number of labels that may be bought in all.
        pool_id (`str`):
            Identifies the pool (see [`pool_fingerprint`]); a ledger is never mixed up with another pool's.

    Raises:
        ValueError: if the file belongs to another pool or was written by a newer version.

    Example:
    ```python
    >>> ledger = AnnotationLedger("ledger.sqlite", budget=100, pool_id=pool_fingerprint(ids))
    >>> ledger.buy(ids[:3], LabelVault(dataset, ["solution"], ids), purpose="probe", epoch=0)
    3
    >>> ledger.label(ids[0])
    {'solution': '42'}
    >>> ledger.label(ids[3]) is None
    True
    ```
    """

    def __init__(self, path: str | Path, budget: int, pool_id: str):
        self.path = Path(path)
        self.budget = budget
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=60.0)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise ValueError(
                    f"{self.path} has ledger version {version}, but this release reads up to {_SCHEMA_VERSION}. "
                    "Upgrade pivottrace-trl."
                )
            if version == 0:
                for statement in _split_statements(_SCHEMA):
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO meta VALUES ('pool_id', ?)", (pool_id,))
                self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            (owner,) = self._connection.execute("SELECT value FROM meta WHERE key = 'pool_id'").fetchone()
        if owner != pool_id:
            self.close()
            raise ValueError(
                f"{self.path} belongs to another pool ({owner}, this one is {pool_id}). Its labels are kept: choose "
                "another `output_dir` for this pool, or move the file away."
            )
        self._cache = {
            identity: json.loads(label)
            for identity, label in self._connection.execute(
                "SELECT prompt_id, label FROM answers WHERE label IS NOT NULL"
            )
        }

    @property
    def num_bought(self) -> int:
        """Number of labels bought so far, probes included."""
        return len(self._cache)

    @property
    def num_left(self) -> int:
        """Number of labels that may still be bought."""
        return max(self.budget - self.num_bought, 0)

    def label(self, prompt_id: str) -> dict[str, Any] | None:
        """
        The label of a prompt, if it was bought.

        Args:
            prompt_id (`str`):
                Id of the prompt.

        Returns:
            `dict[str, Any]` or `None`: label column -> value.
        """
        return self._cache.get(prompt_id)

    def has_declined(self, prompt_id: str) -> bool:
        """Whether the oracle was asked for this prompt and had no answer; it is not asked again."""
        query = "SELECT 1 FROM answers WHERE prompt_id = ? AND label IS NULL"
        return self._connection.execute(query, (prompt_id,)).fetchone() is not None

    def buy(self, prompt_ids: Sequence[str], oracle: Oracle, purpose: str, epoch: int) -> int:
        """
        Ask for labels in batches and record each batch before the next is asked for.

        Prompts that were bought or declined before are passed over. What was recorded stays, also when the oracle
        fails later on.

        Args:
            prompt_ids (`Sequence[str]`):
                Prompts to buy, most valuable first.
            oracle ([`Oracle`]):
                Whom to ask.
            purpose (`str`):
                `"probe"` or `"annotate"`.
            epoch (`int`):
                Epoch of training in which the label was bought.

        Returns:
            `int`: number of labels recorded, at most what was left of the budget.

        Raises:
            RuntimeError: if the oracle raises; labels of earlier batches are kept.
        """
        open_ids = [i for i in dict.fromkeys(prompt_ids) if i not in self._cache and not self.has_declined(i)]
        bought_before = self.num_bought
        while open_ids and self.num_left:
            size = min(_BATCH_SIZE, self.num_left)
            batch, open_ids = open_ids[:size], open_ids[size:]
            try:
                labels = oracle.ask(batch)
            except Exception as error:
                raise RuntimeError(
                    f"The annotator failed on a batch of {len(batch)} prompts ({type(error).__name__}: {error}). The "
                    f"{self.num_bought - bought_before} labels it had returned before are kept in {self.path}; "
                    "start again to go on from there."
                ) from error
            self._record(batch, labels, purpose, epoch)
        return self.num_bought - bought_before

    def _record(self, batch: Sequence[str], labels: Sequence[dict[str, Any] | None], purpose: str, epoch: int) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        rows = [
            (identity, None if label is None else json.dumps(label, ensure_ascii=False), purpose, epoch, now)
            for identity, label in zip(batch, labels, strict=True)
        ]
        with self._transaction():
            count = "SELECT count(*) FROM answers WHERE label IS NOT NULL"
            (spent,) = self._connection.execute(count).fetchone()
            paid = sum(label is not None for label in labels)
            if spent + paid > self.budget:
                # Another process spent from the same ledger since the batch was sized.
                raise RuntimeError(
                    f"Recording {paid} labels would exceed the budget of {self.budget} ({spent} are spent in "
                    f"{self.path}). Raise `annotation_budget` to keep buying."
                )
            self._connection.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", rows)
        for identity, label in zip(batch, labels, strict=True):
            if label is not None:
                self._cache[identity] = json.loads(json.dumps(label))

    def events(self) -> list[dict[str, Any]]:
        """Every recorded answer without its label, in order: `prompt_id`, `purpose`, `epoch`, `answered_at`."""
        query = "SELECT prompt_id, purpose, epoch, answered_at FROM answers ORDER BY rowid"
        names = ("prompt_id", "purpose", "epoch", "answered_at")
        return [dict(zip(names, row, strict=True)) for row in self._connection.execute(query)]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _split_statements(script: str) -> Iterator[str]:
    # `executescript` would commit the running transaction; triggers hold semicolons of their own.
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
