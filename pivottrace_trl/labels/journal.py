"""Keeps the file of a ledger and its state in memory in step, whatever happens."""

import json
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from .file import LedgerFile
from .lock import RunLock
from .state import LedgerState, LedgerView


T = TypeVar("T")
# Made once, as making an encoder takes as long as writing a value.
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


class LedgerJournal(LedgerView):
    """
    Reads, writes and copies events; [`AnnotationLedger`] interprets them. The lock of the run, if there is one, is
    held until the file is closed.
    """

    def __init__(self, path: Path, run_lock: RunLock | None = None):
        self.path = path
        # The desk answers from several threads, and the lock admits one at a time.
        self._lock = threading.RLock()
        self._run_lock = run_lock
        self._own_settings: dict[str, Any] | None = None
        state = LedgerState()
        self._file = LedgerFile(path, state.fold)
        self._memory = state

    @property
    def _state(self) -> LedgerState:
        # After an interruption, the state is read from the file again.
        with self._lock:
            if self._memory is None:
                self.refresh()
            assert self._memory is not None
            return self._memory

    @property
    def _settings(self) -> dict[str, Any]:
        # A run keeps its own budget, whatever another run in the same process did with the file.
        return self._own_settings or self._state.settings

    def events(self) -> list[dict[str, Any]]:
        """
        Every event in order, without labels: `event_id`, `kind`, `prompt_id`, `author`, `price`, `purpose`, `route`,
        `epoch`, `undoes`, `happened_at` (UTC, ISO 8601).
        """
        names = "event_id, kind, prompt_id, author, price, purpose, route, epoch, undoes, happened_at"
        with self._lock:
            rows = self._file.connection.execute(f"SELECT {names} FROM events ORDER BY event_id").fetchall()
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]

    def select(self, query: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query. The query must not write."""
        with self._lock:
            return self._file.connection.execute(query, arguments).fetchall()

    def refresh(self) -> None:
        """Read what other processes wrote."""
        with self._lock:
            # If this is interrupted, the state may hold half an event, and is not used again.
            state, self._memory = self._memory or LedgerState(), None
            self._file.read(state.last_event, state.digest, state.fold)
            self._memory = state

    def backup(self, path: str | Path) -> int:
        """
        Copy the current ledger into one file, and check the copy. The run and other programs may go on writing.

        Args:
            path (`str` or `Path`):
                Where to put the copy. An older copy is replaced in one step.

        Returns:
            `int`: number of bought labels in the copy.

        Raises:
            ValueError: if `path` is the ledger itself, or a file that is not a ledger.
        """
        copied = LedgerState()
        with self._lock:
            self._file.backup(Path(path), copied.fold)
        return len(copied.paid)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._run_lock = None

    def _append(
        self,
        kind: str,
        identity: str | None = None,
        *,
        value: Any = None,
        author: str | None = None,
        price: float = 0.0,
        epoch: int | None = None,
        undoes: tuple[int, str] | None = None,  # the event and its kind
    ) -> None:
        state = self._state
        purpose, route = (value["purpose"], value["route"]) if kind == "request" else state.asked_for(identity)
        row = (
            state.last_event + 1,
            kind,
            identity,
            None if value is None else to_json(value),
            author,
            float(price),
            purpose,
            route,
            None if epoch is None else int(epoch),
            None if undoes is None else undoes[0],
            now().isoformat(timespec="milliseconds"),
        )
        state.fold(self._file.append(row, state.digest), None if undoes is None else undoes[1])

    def _write(self, action: Callable[[], T]) -> T:
        """
        Run one transaction on the state of the file, so that what was checked still holds when it is written. However
        it ends, no transaction is open afterwards, and the state matches the file.
        """
        with self._lock:
            # Not a context manager: an interruption between its parts would leave the transaction open.
            try:
                self._file.begin()
                self.refresh()
                if self._own_settings not in (None, self._state.settings):
                    self._append("settings", value=self._own_settings)
                result = action()
                self._file.commit()
                return result
            except BaseException:
                self._memory = None
                self._file.rollback()
                raise


def now() -> datetime:
    """The current time, in the form in which it is stored."""
    return datetime.now(timezone.utc)


def to_json(value: Any) -> str:
    """A value as JSON, in the form in which it is stored."""
    return _encode(value)
