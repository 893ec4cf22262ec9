"""Queries, answers, and what was paid for them: one SQLite file. The only module that asks for labels."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .queries import Answer, Oracle, Outcome, Query
from .schema import migrate
from .state import LedgerState
from .view import LedgerView


# Questions an oracle gets at a time, unless it has a `batch_size`. What a list holds is recorded at once, what a
# generator yields as it comes.
_BATCH_SIZE = 16


class AnnotationLedger(LedgerView):
    """
    Append-only record of the queries, answers, prices, authors and times of one run, in one SQLite file, under a
    budget. Several processes may use it at once. What a prompt's label is, how much is spent and what is still asked
    for follows from the events.

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
        answer_format (`str`, *optional*, defaults to `"math"`):
            `"math"` if answers must be readable by math-verify, `"text"` if they may be anything.

    Raises:
        ValueError: if the file is no ledger, belongs to another pool or was written by a newer version.

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
        answer_format: str = "math",
    ):
        self._open(Path(path))
        if self._state.paid and self._state.paid.keys().isdisjoint(prompt_ids):
            self.close()
            raise ValueError(
                f"{self.path} belongs to another pool: none of its {len(self._state.paid)} answered prompts is in "
                "this one. Its labels are kept: choose another `output_dir` for this pool, or move the file away."
            )
        settings = {"budget": budget, "label_column": label_column, "answer_format": answer_format}
        with self._writing():
            if settings != self._state.settings:
                self._append("settings", value=settings)

    @classmethod
    def open(cls, path: str | Path) -> "AnnotationLedger":
        """
        Open the ledger of a run as it is.

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`AnnotationLedger`]

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no ledger.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no ledger {path}. Start the training or the triage that makes it.")
        ledger = cls.__new__(cls)
        ledger._open(Path(path))
        if not ledger._state.settings:
            ledger.close()
            raise ValueError(f"{path} was never given a budget. Start the run that it belongs to once.")
        return ledger

    def _open(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # The desk answers from several threads; the lock lets one of them in at a time.
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=60.0, check_same_thread=False)
        self._state = LedgerState()
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            with self._transaction():
                migrate(self._connection, path)
            self.refresh()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise ValueError(f"{path} is no ledger ({error}). Move the file away; it is left as it is.") from error
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            self._connection.close()
            raise ValueError(f"{path} is damaged ({error!r}). Put back a copy; it is left as it is.") from error
        except BaseException:
            self._connection.close()
            raise

    def query(self, prompt_id: str) -> Query | None:
        """The query of a prompt that is asked for and not answered yet, else `None`."""
        with self._lock:
            return self._query(prompt_id) if prompt_id in self._state.open_ids else None

    def queue(self, limit: int | None = None) -> list[Query]:
        """
        What is asked for and not answered yet, most valuable first: probes, then the most uncertain. What was skipped
        comes last.

        Args:
            limit (`int`, *optional*):
                Number of queries. Defaults to all.

        Returns:
            `list[Query]`
        """
        with self._lock:
            ids = sorted(self._state.open_ids, key=self._urgency)[:limit]
            return [self._query(identity) for identity in ids]

    def _query(self, identity: str) -> Query:
        (text,) = self._connection.execute("SELECT prompt FROM prompts WHERE prompt_id = ?", (identity,)).fetchone()
        return Query(identity, text, **self._state.requests[identity])

    def _urgency(self, identity: str) -> tuple[int, bool, float]:
        asked = self._state.requests[identity]
        score = float("-inf") if asked["score"] is None else asked["score"]
        return self._state.num_skips.get(identity, 0), asked["purpose"] != "probe", -score

    def request(self, queries: Sequence[Query], epoch: int = 0) -> None:
        """
        Ask for labels: the queue becomes exactly these queries, less those that were answered or declined before.

        Args:
            queries (`Sequence[Query]`):
                The prompts that deserve a label now.
            epoch (`int`, *optional*, defaults to `0`):
                Epoch of training that asks.
        """
        with self._writing():
            wanted = {q.prompt_id for q in queries}
            for identity in [i for i in self._state.open_ids if i not in wanted]:
                self._append("withdraw", identity, epoch=epoch)
            for query in queries:
                if query.prompt_id in self._state.labels or query.prompt_id in self._state.closed:
                    continue
                self._connection.execute(
                    "INSERT INTO prompts VALUES (?, ?) ON CONFLICT (prompt_id) DO UPDATE SET prompt = excluded.prompt "
                    "WHERE prompts.prompt IS NULL AND excluded.prompt IS NOT NULL",
                    (query.prompt_id, query.prompt),
                )
                value = {
                    "purpose": query.purpose,
                    "route": query.route,
                    # SQLite's JSON and ours agree on finite numbers only.
                    "score": query.score if query.score is None or abs(query.score) < float("inf") else None,
                    "suggestion": query.suggestion,
                }
                if query.prompt_id not in self._state.open_ids or value != self._state.requests[query.prompt_id]:
                    self._append("request", query.prompt_id, value=value, epoch=epoch)

    def buy(self, oracle: Oracle) -> int:
        """
        Let an oracle answer the queue, most valuable first, as far as the budget goes. What was recorded stays, also
        when the oracle fails later on.

        Args:
            oracle ([`Oracle`]):
                Whom to ask.

        Returns:
            `int`: number of labels recorded.

        Raises:
            RuntimeError: if the oracle raises or answers what it was not asked; earlier answers are kept.
        """
        self.refresh()
        with self._lock:
            waiting = sorted(self._state.open_ids, key=self._urgency)
        # Prompts that were paid for before cost nothing: they come first, whatever is left of the budget.
        waiting.sort(key=lambda identity: identity not in self._state.paid)
        batch_size = getattr(oracle, "batch_size", _BATCH_SIZE)
        num_recorded = place = 0
        while place < len(waiting):
            batch: list[str] = []
            num_left = self.num_left
            while place < len(waiting) and len(batch) < batch_size:
                identity = waiting[place]
                is_free = identity in self._state.paid
                if not is_free and num_left == 0:
                    break
                num_left -= not is_free
                if identity in self._state.open_ids:  # another process may have answered it meanwhile
                    batch.append(identity)
                place += 1
            if not batch:
                break
            missing = set(batch)
            answers: Iterable[Answer] = []
            try:
                answers = oracle.ask(batch)
                chunks = iter([answers]) if isinstance(answers, list) else ([answer] for answer in answers)
                for chunk in chunks:
                    if strangers := [a.prompt_id for a in chunk if a.prompt_id not in missing]:
                        raise ValueError(f"it answered {strangers[0]!r}, which it was not asked")
                    missing -= {answer.prompt_id for answer in chunk}
                    num_recorded += self.record(chunk).count(Outcome.RECORDED)
            except sqlite3.Error:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"The annotator failed on a batch of {len(batch)} prompts ({type(error).__name__}: {error}). The "
                    f"{num_recorded} labels it had returned before are kept in {self.path}; "
                    "start again to go on from there."
                ) from error
        return num_recorded

    def record(
        self,
        answers: Sequence[Answer],
        is_same: Callable[[dict[str, Any], dict[str, Any]], bool] = lambda first, second: first == second,
        replace: bool = False,
    ) -> list[Outcome]:
        """
        Record answers in one transaction: all of them or, if the process dies, none.

        Args:
            answers (`Sequence[Answer]`):
                The answers.
            is_same (`Callable[[dict, dict], bool]`, *optional*):
                Whether two labels mean the same. Defaults to equality.
            replace (`bool`, *optional*, defaults to `False`):
                Whether an answer takes the place of another that stands, instead of being in conflict with it. The
                prompt is not paid for again.

        Returns:
            `list[Outcome]`: what became of each.
        """
        with self._writing():
            return [self._record(answer, is_same, replace) for answer in answers]

    def _record(
        self, answer: Answer, is_same: Callable[[dict[str, Any], dict[str, Any]], bool], replace: bool
    ) -> Outcome:
        identity, label = answer.prompt_id, answer.label
        if identity not in self._state.requests:
            return Outcome.UNKNOWN
        standing = self._state.labels.get(identity)
        if label is None:
            if standing is None and identity not in self._state.closed:
                self._append("decline", identity, author=answer.author, price=answer.price)
            return Outcome.DECLINED
        label = json.loads(json.dumps(label, ensure_ascii=False))
        if standing is not None:
            if is_same(standing, label):
                return Outcome.DUPLICATE
            if not replace:
                self._keep_unused(answer, label, Outcome.CONFLICT)
                return Outcome.CONFLICT
            latest = "SELECT max(event_id) FROM events WHERE kind = 'answer' AND prompt_id = ?"
            (event,) = self._connection.execute(latest, (identity,)).fetchone()
            self._append("undo", identity, author=answer.author, undoes=event)
        if identity not in self._state.paid:
            if self.num_left == 0:
                self._keep_unused(answer, label, Outcome.OVER_BUDGET)
                return Outcome.OVER_BUDGET
            self._connection.execute("INSERT INTO purchases (prompt_id) VALUES (?)", (identity,))
        self._append("answer", identity, value=label, author=answer.author, price=answer.price)
        return Outcome.RECORDED

    def _keep_unused(self, answer: Answer, label: dict[str, Any], reason: Outcome) -> None:
        value = {"label": label, "reason": reason.value}
        query = "SELECT 1 FROM events WHERE kind = 'unused' AND prompt_id = ? AND author = ? AND value = ?"
        arguments = (answer.prompt_id, answer.author, _to_json(value))
        if self._connection.execute(query, arguments).fetchone() is None:
            self._append("unused", answer.prompt_id, value=value, author=answer.author, price=answer.price)

    def skip(self, prompt_id: str, author: str) -> None:
        """Put a prompt at the end of the queue."""
        with self._writing():
            if prompt_id in self._state.open_ids:
                self._append("skip", prompt_id, author=author)

    def mark_broken(self, prompt_id: str, author: str) -> None:
        """Take a prompt that cannot be answered out of the queue for good; it costs nothing."""
        with self._writing():
            if prompt_id in self._state.open_ids:
                self._append("broken", prompt_id, author=author)

    def undo(self, author: str) -> Query | None:
        """
        Take back the latest answer, skip or "broken" of a person. An answer that was paid for stays paid: answering
        the prompt again costs nothing.

        Args:
            author (`str`):
                The person.

        Returns:
            [`Query`] or `None`: the prompt that is open again; `None` if there is nothing left to undo.
        """
        with self._writing():
            row = self._connection.execute(
                "SELECT event_id, prompt_id FROM events WHERE author = ? AND kind IN ('answer', 'skip', 'broken') "
                "AND event_id NOT IN (SELECT undoes FROM events WHERE undoes IS NOT NULL) "
                "ORDER BY event_id DESC LIMIT 1",
                (author,),
            ).fetchone()
            if row is None:
                return None
            event, identity = row
            self._append("undo", identity, author=author, undoes=event)
            return self._query(identity)

    def events(self) -> list[dict[str, Any]]:
        """
        Every event in order, without labels: `event_id`, `kind`, `prompt_id`, `author`, `price`, `purpose`, `route`,
        `epoch`, `undoes`, `happened_at` (UTC, ISO 8601).
        """
        names = "event_id, kind, prompt_id, author, price, purpose, route, epoch, undoes, happened_at"
        with self._lock:
            rows = self._connection.execute(f"SELECT {names} FROM events ORDER BY event_id").fetchall()
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]

    def refresh(self) -> None:
        """Take up what other processes wrote."""
        columns = "event_id, kind, prompt_id, value, author, epoch, undoes"
        query = f"SELECT {columns} FROM events WHERE event_id > ? ORDER BY event_id"
        with self._lock:
            for event, kind, identity, value, author, epoch, undoes in self._connection.execute(
                query, (self._state.last_event,)
            ):
                undone = None
                if undoes is not None:
                    (undone,) = self._connection.execute(
                        "SELECT kind FROM events WHERE event_id = ?", (undoes,)
                    ).fetchone()
                read = json.loads(value) if value else None
                self._state.fold(event, kind, identity, read, author, epoch, undone)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _append(
        self,
        kind: str,
        identity: str | None = None,
        *,
        value: Any = None,
        author: str | None = None,
        price: float = 0.0,
        epoch: int | None = None,
        undoes: int | None = None,
    ) -> None:
        asked = value if kind == "request" else self._state.requests.get(identity or "", {})
        self._connection.execute(
            "INSERT INTO events (kind, prompt_id, value, author, price, purpose, route, epoch, undoes, happened_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                kind,
                identity,
                None if value is None else _to_json(value),
                author,
                price,
                asked.get("purpose"),
                asked.get("route"),
                epoch,
                undoes,
                datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            ),
        )
        self.refresh()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction on the state as the file has it: what is checked still holds when it is written."""
        with self._transaction():
            self.refresh()
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                self._forget()
                raise
            self._connection.execute("COMMIT")

    def _forget(self) -> None:
        """The state may hold events that were rolled back: read it from the file again when it is needed next."""
        self._state = LedgerState()
        self.refresh()


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
