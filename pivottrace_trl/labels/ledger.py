"""Queries, answers, and what was paid for them: one SQLite file. The only module that asks for labels."""

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
    Append-only record of the queries, answers, prices, authors and times of one run, in one SQLite file, under a
    budget. One run has it at a time; others [`~AnnotationLedger.open`] it beside the run. What a prompt's label is,
    how much is spent and what is still asked for follows from the events.

    The state is a snapshot: what other processes wrote is seen after [`~AnnotationLedger.refresh`] or the next write.
    A prompt is paid for once, whatever is undone and answered again.

    Args:
        path (`str` or `Path`):
            SQLite file; made if absent.
        budget (`int`):
            Number of labels that may be bought in all.
        prompt_ids (`Sequence[str]`):
            The pool. It may have changed since the last time, as long as some answered prompt is still in it.
        label_column (`str`, *optional*, defaults to `"solution"`):
            Column under which the reward functions expect an answer.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Reads the answers of oracles. It stays once there are labels.

    Raises:
        ValueError: if the budget is no number of labels, or the file is no ledger, damaged, or of another pool. It is
            left as it is.
        RuntimeError: if a run of another process has the file.

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
        Open the ledger of a run as it is, also while the run is alive.

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`AnnotationLedger`]

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no ledger, or damaged.
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
        The labels that were bought, and those that the user had, for any trainer. Nothing that was taken back, and no
        row without a label. The rows were chosen for what a label is worth: they are no sample to evaluate on.

        Args:
            dataset ([`~datasets.Dataset`], *optional*):
                The pool, from which the prompts come as they are, conversations included, in this order. By default
                `prompt` is the question as people saw it, in the order of the pool.
            prompt_ids (`Sequence[str]`, *optional*):
                Ids of the rows of `dataset`. Defaults to `pool_ids(dataset)`; where the run had an id column, a
                question column or an instruction, `pool_ids` takes the same.
            columns (`Sequence[str]`, *optional*, defaults to `("prompt",)`):
                Columns of `dataset` to keep.

        Returns:
            [`~datasets.Dataset`]: `prompt_id`, the columns of `dataset` or `prompt`, and the label under its own name;
            `route`, `score` and `agreement` of the prompt when its label was asked for, where that is known; `purpose`
            (`"probe"`, `"annotate"`, or `"own"` for a label that the user had), `author`, `price` (of all answers and
            opinions on it, those that were taken back included) and `time` of the answer (UTC). Of these, one with the
            name of the label column is called `label_...`.

        Raises:
            ValueError: if `dataset` holds none of the labelled prompts, lacks a column, or has one that is
                called like ours.

        Example:
        ```python
        >>> labels = AnnotationLedger.open("run/_pivottrace/ledger.sqlite").to_dataset(dataset)
        >>> trainer = GRPOTrainer(model=..., reward_funcs=accuracy_reward, train_dataset=labels)
        ```
        """
        return labelled_dataset(self, dataset, prompt_ids, columns)

    def query(self, prompt_id: str) -> Query | None:
        """The query of a prompt that is asked for and not answered yet, else `None`."""
        with self._lock:
            return self._queries([prompt_id])[0] if prompt_id in self._state.open_ids else None

    def queue(self, limit: int | None = None) -> list[Query]:
        """
        What is asked for and not answered yet, most valuable first: probes, then by the value of a label, and where
        that is not known the most uncertain. What was skipped comes last.

        Args:
            limit (`int`, *optional*):
                Number of queries. Defaults to all.

        Returns:
            `list[Query]`
        """
        with self._lock:
            return self._queries(sorted(self._state.open_ids, key=self._urgency)[:limit])

    def _paid_first(self, identity: str) -> tuple[Any, ...]:
        # What was paid for before costs nothing: it comes first, whatever is left of the budget.
        return identity not in self._state.paid, *self._urgency(identity)

    def _urgency(self, identity: str) -> tuple[int, bool, float, float]:
        asked = self._state.requests[identity]
        # Where a value is not known, the score decides, as it does among equal values.
        keys = [float("inf") if asked.get(name) is None else -asked[name] for name in ("value", "score")]
        return self._state.num_skips.get(identity, 0), asked["purpose"] != "probe", keys[0], keys[1]

    def request(self, queries: Sequence[Query], epoch: int = 0, replaces: bool = True) -> None:
        """
        Ask for labels: the queue becomes exactly these queries, less those that were answered or declined before. A
        question that somebody is answering now stays in it.

        Args:
            queries (`Sequence[Query]`):
                The prompts that deserve a label now.
            epoch (`int`, *optional*, defaults to `0`):
                Epoch of training that asks.
            replaces (`bool`, *optional*, defaults to `True`):
                Whether what else is in the queue is withdrawn.
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
        Let an oracle answer the queue, most valuable first, as far as the budget goes. What was recorded stays, also
        when the oracle fails later on. An answer that the answer format cannot read counts as none.

        Args:
            oracle ([`Oracle`]):
                Whom to ask.
            rows (`Callable[[list[str]], Iterable[dict]]`, *optional*):
                Returns what the oracle may know of the prompts with the given ids. Defaults to the text of the prompt,
                as `prompt`.
            among (`Collection[str]`, *optional*):
                Ids of the prompts that may be answered now. Defaults to the whole queue.

        Returns:
            `int`: number of labels recorded.

        Raises:
            RuntimeError: if the oracle raises or answers what it was not asked; earlier answers are kept.
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
                    answers.close()  # what it has under way ends now, and not when a traceback is forgotten
        return num_recorded

    def _next_batch(self, waiting: deque[str], most: int) -> list[Query]:
        """The next queries that the budget pays for; another process may have answered some of them meanwhile."""
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
        """An answer as it is kept: read by the answer format; declined if that cannot be done."""
        if isinstance(said, Opinion) or isinstance(said.label, dict):
            return said
        answer_format = format_of_ledger(self.answer_format, self._own_format)
        return dataclasses.replace(said, label=read_label(said, answer_format))


def _finite(number: float | None) -> float | None:
    """SQLite's JSON and ours agree on finite numbers only."""
    return number if number is not None and abs(number) < float("inf") else None
