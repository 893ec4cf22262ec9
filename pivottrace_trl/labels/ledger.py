"""Queries, answers and their cost in one SQLite file. This is the only module that asks for labels."""

import dataclasses
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..answers import AnswerFormat
from ..answers.format import format_of_ledger
from .column_labels import ColumnLedger
from .dataset import labelled_dataset
from .file import LedgerFile, check_header
from .lock import hold
from .queries import Answer, Opinion, Oracle, Outcome, Query, read_label


logger = logging.getLogger(__name__)


class AnnotationLedger(ColumnLedger):
    """
    Append-only record of the queries, answers, prices, authors and times of one run, in one SQLite file, under an
    annotation budget. The labels, the money spent and the queue all follow from the recorded events. One run at a time
    owns the ledger; other programs [`~AnnotationLedger.open`] it while the run is alive.

    The state is a snapshot: what other processes wrote becomes visible after [`~AnnotationLedger.refresh`] or the next
    write. A prompt is paid for once, even if its answer is undone and given again.

    Args:
        path (`str` or `Path`):
            SQLite file; created if it does not exist.
        budget (`int`):
            Number of labels that may be bought in all.
        prompt_ids (`Sequence[str]`):
            Ids of the pool. The pool may have changed since the last time, as long as one answered prompt is still in
            it.
        label_column (`str`, *optional*, defaults to `"solution"`):
            Column under which the reward functions expect the label.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Reads the answers of oracles. It cannot be changed once there are labels.

    Raises:
        ValueError: if the budget is not a number of labels, or if the file is not a ledger, is damaged, or belongs to
            another pool. The file is left as it is.
        RuntimeError: if a run in another process owns the file.

    Example:
    ```python
    >>> ledger = AnnotationLedger("ledger.sqlite", budget=100, prompt_ids=ids)
    >>> ledger.request([Query(ids[0]), Query(ids[1])])
    >>> ledger.buy(LabelVault(dataset, ["solution"], ids))
    2
    >>> ledger.label(ids[0])
    {'solution': '42'}
    >>> ledger.label(ids[3]) is None
    True
    ```
    """

    def __init__(
        self,
        path: str | Path,
        budget: int,
        prompt_ids: Sequence[str],
        label_column: str = "solution",
        answer_format: AnswerFormat | str = "math",
    ):
        if isinstance(budget, bool) or not isinstance(budget, Integral) or budget < 0:
            raise ValueError(
                f"`budget` is {budget!r}, but must be a number of labels, such as 100. `resolve_budget(0.293, "
                "len(prompt_ids))` makes one of a share."
            )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_header(path)
        lock = hold(path.with_name(f"{path.name}-lock"))
        if not path.exists():
            LedgerFile.create(path)
        super().__init__(path, lock)
        if self._state.paid and self._state.paid.keys().isdisjoint(prompt_ids):
            self.close()
            raise ValueError(
                f"{self.path} belongs to another pool: none of its {len(self._state.paid)} answered prompts is in "
                "this one. Its labels are kept: choose another `output_dir` for this pool, or move the file away."
            )
        name = answer_format if isinstance(answer_format, str) else answer_format.name
        former = self._state.settings.get("answer_format", name)
        if self._state.paid and former != name:
            self.close()
            raise ValueError(
                f"{self.path} holds {len(self._state.paid)} labels in the answer format {former!r}, but "
                f"`answer_format` is {name!r}, which may read them differently. Go on with "
                f"`answer_format={former!r}`, or choose another `output_dir`."
            )
        self._pool = frozenset(prompt_ids)
        self._own_settings = {"budget": int(budget), "label_column": label_column, "answer_format": name}
        self._own_format: AnswerFormat | str | None = answer_format
        self._write(lambda: None)

    @classmethod
    def open(cls, path: str | Path) -> "AnnotationLedger":
        """
        Open the ledger of a run without changing it, even while the run is alive.

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`AnnotationLedger`]

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a ledger, or is damaged.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no ledger {path}. Start the training or the triage that makes it.")
        ledger = cls.__new__(cls)
        ColumnLedger.__init__(ledger, Path(path))
        ledger._own_format = None
        if not ledger._state.settings:
            ledger.close()
            raise ValueError(f"{path} was never given a budget. Start the run that it belongs to once.")
        return ledger

    def to_dataset(
        self,
        dataset: Dataset | None = None,
        prompt_ids: Sequence[str] | None = None,
        columns: Sequence[str] = ("prompt",),
    ) -> Dataset:
        """
        Export the labels that were bought, and the user's own, as a dataset for any trainer. It has no labels that
        were taken back, and no rows without a label. Do not evaluate on it: the rows were chosen because their labels
        are useful for training, and are no random sample.

        Args:
            dataset ([`~datasets.Dataset`], *optional*):
                The pool. Prompts are taken from it unchanged, conversations included, in its order. By default,
                `prompt` is the question as people saw it, in the order of the pool.
            prompt_ids (`Sequence[str]`, *optional*):
                Ids of the rows of `dataset`. Defaults to `pool_ids(dataset)`. If the run had an id column, a question
                column or an instruction, pass the ids that `pool_ids` returns with the same arguments.
            columns (`Sequence[str]`, *optional*, defaults to `("prompt",)`):
                Columns of `dataset` to keep.

        Returns:
            [`~datasets.Dataset`]: one row per label, with these columns. `prompt_id`; the columns of `dataset`, or
            `prompt`; the label under its own name; `route`, `score` and `agreement` of the prompt when its label was
            asked for, if known; `purpose` (`"probe"`, `"annotate"`, or `"own"` for the user's own label); `author`;
            `price` of all answers and opinions on the prompt, including those that were taken back; and `time` of the
            answer (UTC). A column of ours that has the name of the label column is called `label_...` instead.

        Raises:
            ValueError: if `dataset` holds none of the labelled prompts, lacks a column, or has a column with the name
                of one of ours.

        Example:
        ```python
        >>> labels = AnnotationLedger.open("run/_pivottrace/ledger.sqlite").to_dataset(dataset)
        >>> trainer = GRPOTrainer(model=..., reward_funcs=accuracy_reward, train_dataset=labels)
        ```
        """
        return labelled_dataset(self, dataset, prompt_ids, columns)

    def query(self, prompt_id: str) -> Query | None:
        """
        The open query of a prompt.

        Args:
            prompt_id (`str`):
                Id of the prompt.

        Returns:
            [`Query`] or `None`: `None` if the label was not asked for, or is answered.
        """
        with self._lock:
            return self._queries([prompt_id])[0] if prompt_id in self._state.open_ids else None

    def queue(self, limit: int | None = None) -> list[Query]:
        """
        The open queries, most valuable first: probes, then queries by the value of their label, or by uncertainty if
        the value is not known. Skipped ones come last.

        Args:
            limit (`int`, *optional*):
                Number of queries. Defaults to all.

        Returns:
            `list[Query]`
        """
        with self._lock:
            return self._queries(sorted(self._state.open_ids, key=self._urgency)[:limit])

    def _paid_first(self, identity: str) -> tuple[Any, ...]:
        # A prompt that was already paid for costs nothing, so it comes first, whatever is left of the budget.
        return identity not in self._state.paid, *self._urgency(identity)

    def _urgency(self, identity: str) -> tuple[int, bool, float, float]:
        asked = self._state.requests[identity]
        # If the value is not known, the score decides, as it does between equal values.
        keys = [float("inf") if asked.get(name) is None else -asked[name] for name in ("value", "score")]
        return self._state.num_skips.get(identity, 0), asked["purpose"] != "probe", keys[0], keys[1]

    def request(self, queries: Sequence[Query], epoch: int = 0, replaces: bool = True) -> None:
        """
        Ask for labels. The queue becomes exactly these queries, without those that were answered or declined before. A
        question that somebody is answering at the moment stays in the queue.

        Args:
            queries (`Sequence[Query]`):
                The prompts whose label is wanted now.
            epoch (`int`, *optional*, defaults to `0`):
                Epoch of training in which they are asked for.
            replaces (`bool`, *optional*, defaults to `True`):
                Whether other open queries are withdrawn.
        """
        self._write(lambda: self._request(queries, epoch, replaces))

    def _request(self, queries: Sequence[Query], epoch: int, replaces: bool) -> None:
        wanted = {q.prompt_id for q in queries}
        others = [i for i in self._state.open_ids if i not in wanted and self.claimant(i) is None]
        for identity in others if replaces else []:
            self._append("withdraw", identity, epoch=epoch)
        for query in queries:
            if query.prompt_id in self._state.labels or query.prompt_id in self._state.closed:
                continue
            self._file.add_prompt(query.prompt_id, query.prompt)
            value = {
                "purpose": query.purpose,
                "route": query.route,
                "score": _finite(query.score),
                "suggestion": query.suggestion,
                "agreement": _finite(query.agreement),
                "value": _finite(query.value),
            }
            if query.prompt_id not in self._state.open_ids or value != self._state.requests[query.prompt_id]:
                self._append("request", query.prompt_id, value=value, epoch=epoch)

    def buy(
        self,
        oracle: Oracle,
        rows: Callable[[list[str]], Iterable[dict[str, Any]]] | None = None,
        among: Collection[str] | None = None,
    ) -> int:
        """
        Let an oracle answer the queue, most valuable first, as far as the budget goes. Recorded answers are kept even
        if the oracle fails later. An answer that the answer format cannot read counts as no answer.

        Args:
            oracle ([`Oracle`]):
                The oracle to ask.
            rows (`Callable[[list[str]], Iterable[dict]]`, *optional*):
                Returns what the oracle may see of the prompts with the given ids, one dictionary per id. Defaults to
                the text of the prompt, as `prompt`.
            among (`Collection[str]`, *optional*):
                Ids of the prompts that may be answered now. Defaults to the whole queue.

        Returns:
            `int`: number of labels recorded.

        Raises:
            RuntimeError: if the oracle raises, or answers a prompt that it was not asked about. Earlier answers are
                kept.
        """
        self.refresh()
        with self._lock:
            ids = [identity for identity in self._state.open_ids if among is None or identity in among]
            waiting = deque(sorted(ids, key=self._paid_first))
        num_recorded = 0
        while batch := self._next_batch(waiting, oracle.batch_size):
            ids = [query.prompt_id for query in batch]
            if rows is not None:
                batch = [dataclasses.replace(query, row=row) for query, row in zip(batch, rows(ids), strict=True)]
            missing = set(ids)
            answers: Iterable[Answer | Opinion] = []
            try:
                answers = oracle.ask(batch)
                for chunk in [answers] if isinstance(answers, list) else ([answer] for answer in answers):
                    if strangers := [a.prompt_id for a in chunk if a.prompt_id not in missing]:
                        raise ValueError(f"it answered {strangers[0]!r}, which it was not asked")
                    missing -= {answer.prompt_id for answer in chunk if isinstance(answer, Answer)}
                    num_recorded += self.record([self._read(said) for said in chunk]).count(Outcome.RECORDED)
            except sqlite3.Error:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"The annotator failed on a batch of {len(batch)} prompts ({type(error).__name__}: {error}). The "
                    f"{num_recorded} labels it had returned before are kept in {self.path}; "
                    "start again to go on from there."
                ) from error
            finally:
                if isinstance(answers, Generator):
                    answers.close()  # ends its requests now, and not when the traceback is garbage-collected
        return num_recorded

    def _next_batch(self, waiting: deque[str], most: int) -> list[Query]:
        """The next queries that the budget pays for, without those that another process has answered meanwhile."""
        ids: list[str] = []
        with self._lock:
            num_left = self.num_left
            while waiting and len(ids) < most:
                is_free = waiting[0] in self._state.paid
                if num_left == 0 and not is_free:
                    break
                identity = waiting.popleft()
                if identity in self._state.open_ids:
                    num_left -= not is_free
                    ids.append(identity)
            batch = self._queries(ids)
        return [dataclasses.replace(query, opinions=self.opinions(query.prompt_id)) for query in batch]

    def _read(self, said: Answer | Opinion) -> Answer | Opinion:
        """The answer to record: as the answer format reads it, or without a label if it cannot be read."""
        if isinstance(said, Opinion) or isinstance(said.label, dict):
            return said
        answer_format = format_of_ledger(self.answer_format, self._own_format)
        return dataclasses.replace(said, label=read_label(said, answer_format))


def _finite(number: float | None) -> float | None:
    """The number, or `None` if it is not finite: SQLite's JSON has no other numbers."""
    return number if number is not None and abs(number) < float("inf") else None
