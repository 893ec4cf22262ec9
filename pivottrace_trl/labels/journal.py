"""The file of a ledger and its state in memory, in step whatever happens."""

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
# Made once: an encoder takes as long to make as a value to write.
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


class LedgerJournal(LedgerView):
    """
    Reads, writes and copies events; what they mean, [`AnnotationLedger`] knows. The lock of the run, if there is one,
    is held until the file is closed.
    """

    def __init__(self, path: Path, run_lock: RunLock | None = None):
        self.path = path
        # The desk answers from several threads; the lock lets one of them in at a time.
        self._lock = threading.RLock()
        self._run_lock = run_lock
        self._own_settings: dict[str, Any] | None = None
        state = LedgerState()
        self._file = LedgerFile(path, state.fold)
        self._memory = state

    @property
    def _state(self) -> LedgerState:
        # What was interrupted half way is read from the file again.
        with self._lock:
            if self._memory is None:
                self.refresh()
            assert self._memory is not None
            return self._memory

    @property
    def _settings(self) -> dict[str, Any]:
        # A run keeps to its own budget, whatever another one of the same process did with the file.
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
        """The rows of a query that reads."""
        with self._lock:
            return self._file.connection.execute(query, arguments).fetchall()

    def refresh(self) -> None:
        """Take up what other processes wrote."""
        with self._lock:
            # Whatever interrupts this, a state that took up half an event is not used again.
            state, self._memory = self._memory or LedgerState(), None
            self._file.read(state.last_event, state.digest, state.fold)
            self._memory = state

    def backup(self, path: str | Path) -> int:
        """
        Copy the ledger as it is now into one file, and check the copy. The run and other programs may go on writing.

        Args:
            path (`str` or `Path`):
                The copy. An older copy is replaced, all at once.

        Returns:
            `int`: number of labels bought in the copy.

        Raises:
            ValueError: if `path` is the ledger itself, or something that is no ledger.
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
        One transaction on the state as the file has it: what is checked still holds when it is written. However it
        ends, there is no transaction afterwards, and the state is that of the file.
        """
        with self._lock:
            # In one function: an interruption between the parts of a context manager would leave it open.
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
    """The time, as it is written."""
    return datetime.now(timezone.utc)


def to_json(value: Any) -> str:
    """The one way in which a value is written."""
    return _encode(value)
