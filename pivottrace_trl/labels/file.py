"""The ledger's file: its format, its integrity checks, and transactions that always end."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple

from ..files import replace_atomically
from .schema import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    create_tables,
    find_version,
    has_our_tables,
    is_readable,
    take_over,
)


_MAGIC = b"SQLite format 3\0"
_CACHE_KIB = 200 * 1024
_APPLICATION_ID_AT = slice(68, 72)  # https://www.sqlite.org/fileformat.html#the_database_header


class Event(NamedTuple):
    """A row of the table `events`; see `schema.py`."""

    event_id: int
    kind: str
    prompt_id: str | None
    value: str | None
    author: str | None
    price: float
    purpose: str | None
    route: str | None
    epoch: int | None
    undoes: int | None
    happened_at: str
    digest: str


_COLUMNS = ", ".join(Event._fields)
_INSERT = f"INSERT INTO events ({_COLUMNS}) VALUES ({', '.join('?' * len(Event._fields))})"
_INSERT_PROMPT = (
    "INSERT INTO prompts VALUES (?, ?, ?) ON CONFLICT (prompt_id) DO UPDATE SET prompt = excluded.prompt, "
    "digest = excluded.digest WHERE prompts.prompt IS NULL AND excluded.prompt IS NOT NULL"
)
_INSERT_PURCHASE = "INSERT INTO purchases (prompt_id) VALUES (?)"
# Number of rows written at a time.
_MOST_ROWS = 1000
_SELECT = (
    f"SELECT {', '.join('e.' + name for name in Event._fields)}, u.kind "
    "FROM events e LEFT JOIN events u ON u.event_id = e.undoes WHERE e.event_id > ? ORDER BY e.event_id"
)


class LedgerFile:
    """
    An open ledger file that passed its checks. Opening reads the whole file without writing, and calls `take` with
    each event and the kind of the event that it undoes. A file of the former version is then converted, with the same
    rows. If the file is damaged or not a ledger, it is left as it is and `ValueError` is raised.
    """

    def __init__(self, path: Path, take: Callable[[Event, str | None], None]):
        self.path = path
        self._is_closed = False
        self._connection: sqlite3.Connection | None = None
        # Rows that the transaction has not written yet. The order of writing matters: the budget is in the events, and
        # events and purchases refer to prompts.
        self._rows: dict[str, list[Sequence[Any]]] = {_INSERT_PROMPT: [], _INSERT: [], _INSERT_PURCHASE: []}
        if self._examine(take) != SCHEMA_VERSION:
            take_over(self.connection)
            self._drop_connection()

    def _examine(self, take: Callable[[Event, str | None], None]) -> int:
        """
        Read the whole file through a read-only connection, so that a damaged file and its log stay as they are.
        Returns the version.
        """
        check_header(self.path)
        try:
            self._connection = self._connect("ro")
            self._connection.execute("BEGIN")  # a consistent snapshot, whoever writes meanwhile
            if not is_readable(version := find_version(self._connection)):
                raise ValueError(
                    f"{self.path} has ledger version {version}, but this release reads version {SCHEMA_VERSION}. Use "
                    "the release of pivottrace-trl that wrote it."
                )
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise self._damage(found)
            if not has_our_tables(self._connection):
                raise self._damage("its tables are not what was written")
            paid: set[str | None] = set()

            def note(event: Event, undone: str | None) -> None:
                if event.kind == "answer":
                    paid.add(event.prompt_id)
                take(event, undone)

            self.read(0, "", note)
            for row in self._connection.execute("SELECT prompt_id, prompt, digest FROM prompts"):
                self._check_prompt(row)
            num_charged = 0
            for (prompt_id,) in self._connection.execute("SELECT prompt_id FROM purchases"):
                num_charged += 1
                if prompt_id not in paid:
                    raise self._damage(f"prompt {prompt_id} was charged, but never answered")
            if num_charged != len(paid):  # a prompt is charged only once
                raise self._damage(f"{num_charged} purchases do not match {len(paid)} answered prompts")
            return version
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{self.path} cannot be opened as a ledger ({error}). Close the program that holds it, or restore a "
                "backup; it is left as it is."
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes what it cannot read
            raise self._damage(error) from error
        finally:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty ledger. The file appears only when it is complete, even if the power fails."""

        def write(temporary: Path) -> None:
            connection = sqlite3.connect(temporary, isolation_level=None)
            try:
                create_tables(connection)
                connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()

        replace_atomically(path, write)

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60.0, check_same_thread=False)
        # With a lower setting, a power failure may lose an acknowledged commit.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # Ids are spread over all pages of an index. With a million prompts, the cache saves reading them every time.
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        if mode == "rw":
            connection.execute("PRAGMA journal_mode=WAL")  # a copy made by `backup` is not in this mode
        return connection

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection. It is opened anew if the last one could no longer be trusted."""
        if self._is_closed:
            raise sqlite3.ProgrammingError(f"{self.path} was closed")
        if self._connection is None:
            self._connection = self._connect("rw")
        return self._connection

    def _damage(self, reason: object) -> ValueError:
        return ValueError(f"{self.path} is damaged ({reason}). Restore a backup; it is left as it is.")

    def begin(self) -> None:
        """Begin a transaction; waits for other processes that write."""
        self.rollback()  # a transaction may be left over from an interrupted clean-up
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit the transaction."""
        self._flush()
        self.connection.execute("COMMIT")

    def _add(self, statement: str, row: Sequence[Any]) -> None:
        rows = self._rows[statement]
        rows.append(row)
        if len(rows) == _MOST_ROWS:
            self._flush()

    def _flush(self) -> None:
        for statement, rows in self._rows.items():
            if rows:
                self.connection.executemany(statement, rows)
                rows.clear()

    def rollback(self) -> None:
        """Drop what was written since `begin`. Does nothing without a transaction."""
        for rows in self._rows.values():
            rows.clear()
        connection = self._connection
        if connection is None or not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # Closing the connection drops the transaction in any case. The next use opens another connection.
            self._connection = None
            connection.close()

    def read(self, after: int, digest: str, take: Callable[[Event, str | None], None]) -> None:
        """
        Call `take` with each event after the one with this number and digest. Raises `ValueError` if an event is not
        what was written.
        """
        cursor = self.connection.cursor()
        try:
            cursor.execute(_SELECT, (after,))
            for *row, written, undone in cursor:
                digest = _digest((digest, *row))
                if digest != written:
                    raise self._damage(f"event {row[0]} is not what was written")
                take(Event._make((*row, digest)), undone)
        finally:
            cursor.close()

    def append(self, row: Sequence[Any], previous: str) -> Event:
        """Append an event, given without its digest, after the one with the digest `previous`; returns the event."""
        event = Event._make((*row, _digest((previous, *row))))
        self._add(_INSERT, event)
        return event

    def add_prompt(self, prompt_id: str, prompt: str | None) -> None:
        """Store a prompt. Its text may be added later."""
        self._add(_INSERT_PROMPT, (prompt_id, prompt, _digest((prompt_id, prompt))))

    def prompts(self, prompt_ids: Sequence[str]) -> list[str | None]:
        """The texts of prompts; `None` for a prompt without one."""
        self._flush()
        query = "SELECT prompt_id, prompt, digest FROM prompts WHERE prompt_id IN (SELECT value FROM json_each(?))"
        rows = self.connection.execute(query, (json.dumps(prompt_ids),)).fetchall()
        texts = {row[0]: self._check_prompt(row) for row in rows}
        return [texts[prompt_id] for prompt_id in prompt_ids]

    def _check_prompt(self, row: Sequence[Any]) -> str | None:
        prompt_id, prompt, digest = row
        if digest != _digest((prompt_id, prompt)):
            raise self._damage(f"prompt {prompt_id} is not what was written")
        return prompt

    def add_purchase(self, prompt_id: str) -> None:
        """Charge a prompt to the budget. The database refuses a purchase beyond the budget, and a second one."""
        self._add(_INSERT_PURCHASE, (prompt_id,))

    def find(self, query: str, arguments: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, including what the transaction has written; `None` if there is none."""
        self._flush()
        cursor = self.connection.cursor()
        try:
            return cursor.execute(query, arguments).fetchone()
        finally:
            cursor.close()

    def backup(self, target: Path, take: Callable[[Event, str | None], None]) -> None:
        """
        Copy the current ledger, with its log, into one file, and check the copy by reading it. Other processes may go
        on writing. An older copy is replaced; any other file is refused with `ValueError`.
        """
        if target.exists():
            check_header(target)
            if target.samefile(self.path):
                raise ValueError(f"{target} is the ledger itself. Name another file.")

        def write(temporary: Path) -> None:
            copy = sqlite3.connect(temporary, isolation_level=None)
            try:
                self.connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                copy.close()
            LedgerFile(temporary, take).close()

        replace_atomically(target, write)

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()


def check_header(path: Path) -> None:
    """
    Raise `ValueError` if the first bytes of a file are not those of a ledger. The database of another program must not
    even be opened, as that may change it.
    """
    reason = "it is a folder"
    if not path.is_dir():
        with path.open("rb") as file:
            header = file.read(100)
        reason = "it is empty" if not header else "it is not an SQLite file"
        if header.startswith(_MAGIC):
            if header[_APPLICATION_ID_AT] == APPLICATION_ID.to_bytes(4, "big"):
                return
            reason = "it is a database of another program"
    raise ValueError(f"{path} is not a ledger: {reason}. Move it away, or choose another folder; it is left as it is.")


def _digest(values: Iterable[Any]) -> str:
    """
    Digest of values as a JSON list. It detects damage, not forgery. The list is written here, in half the time that
    `json` takes: at a million rows this is the second-largest part of opening a ledger.
    """
    quote = encode_basestring_ascii
    parts = ["null" if value is None else quote(value) if isinstance(value, str) else repr(value) for value in values]
    return hashlib.blake2b(f"[{', '.join(parts)}]".encode(), digest_size=16).hexdigest()
