"""Tables of the ledger's file."""

import sqlite3
from functools import cache


SCHEMA_VERSION = 4
_FORMER_VERSION = 3
# In the header of the file, so that a ledger is recognised without opening it as a database.
APPLICATION_ID = 0x50545254
_FORMER_KINDS = ("settings", "request", "withdraw", "answer", "decline", "broken", "skip", "undo", "unused")
# `own` is the user's own label, `opinion` is what one of several annotators said, and `claim` means that somebody is
# answering.
_KINDS = (*_FORMER_KINDS, "own", "opinion", "claim")
# Purchases are numbered without gaps, since nothing is ever deleted. The highest number is the number of purchases.
_SCHEMA = """
CREATE TABLE prompts (
    prompt_id TEXT PRIMARY KEY,
    prompt TEXT,  -- for people; NULL where nobody has to read it
    digest TEXT NOT NULL
);
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN
        {kinds}),
    prompt_id TEXT REFERENCES prompts (prompt_id),
    value TEXT,  -- JSON: settings, what was asked for, or the label
    author TEXT,
    price REAL NOT NULL,
    purpose TEXT,
    route TEXT,
    epoch INTEGER,
    undoes INTEGER UNIQUE REFERENCES events (event_id),
    happened_at TEXT NOT NULL,
    digest TEXT NOT NULL,  -- of this row and the digest before it
    CHECK (prompt_id IS NOT NULL OR kind = 'settings')
);
CREATE INDEX settings_of_the_run ON events (event_id) WHERE kind = 'settings';
CREATE INDEX events_of_an_author ON events (author, event_id) WHERE author IS NOT NULL;
CREATE INDEX events_of_a_prompt ON events (prompt_id, event_id) WHERE kind IN {looked_up};
CREATE TABLE purchases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id TEXT NOT NULL UNIQUE REFERENCES prompts (prompt_id)
);
CREATE TRIGGER budget_is_a_limit BEFORE INSERT ON purchases
WHEN (SELECT coalesce(max(number), 0) FROM purchases) >= (
    SELECT json_extract(value, '$.budget') FROM events WHERE kind = 'settings' ORDER BY event_id DESC LIMIT 1)
BEGIN SELECT RAISE(ABORT, 'the annotation budget is spent'); END;
CREATE TRIGGER prompts_are_final BEFORE UPDATE ON prompts
WHEN OLD.prompt IS NOT NULL OR NEW.prompt_id != OLD.prompt_id
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER prompts_stay BEFORE DELETE ON prompts BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER events_are_final BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER purchases_are_final BEFORE UPDATE ON purchases
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER purchases_stay BEFORE DELETE ON purchases BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_TABLES = ("prompts", "events", "purchases")
_DEFINITIONS = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"


def _schema(version: int) -> str:
    is_former = version == _FORMER_VERSION
    kinds, looked_up = (
        (_FORMER_KINDS, ("answer", "unused")) if is_former else (_KINDS, ("answer", "own", "unused", "opinion"))
    )
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
    return _SCHEMA.format(kinds=kinds, looked_up=looked_up) + marks


def create_tables(connection: sqlite3.Connection, version: int = SCHEMA_VERSION) -> None:
    """Make the tables in an empty database."""
    connection.executescript(f"BEGIN IMMEDIATE; {_schema(version)} COMMIT;")


def find_version(connection: sqlite3.Connection) -> int:
    """Version of the tables."""
    return connection.execute("PRAGMA user_version").fetchone()[0]


def is_readable(version: int) -> bool:
    """Whether this release reads a version, if necessary after converting it."""
    return version in (_FORMER_VERSION, SCHEMA_VERSION)


def take_over(connection: sqlite3.Connection) -> None:
    """Convert a checked ledger of the former version to the present tables in one step, with the same rows."""
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if find_version(connection) == _FORMER_VERSION:  # no other process has converted it meanwhile
            for table in _TABLES:
                connection.execute(f"CREATE TEMP TABLE former_{table} AS SELECT * FROM main.{table}")
            for table in reversed(_TABLES):
                connection.execute(f"DROP TABLE main.{table}")
            for statement in _statements(_schema(SCHEMA_VERSION)):
                connection.execute(statement)
            for table in _TABLES:
                connection.execute(f"INSERT INTO main.{table} SELECT * FROM former_{table} ORDER BY rowid")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """The statements of a script. The statements of a trigger contain semicolons themselves."""
    statements, begun = [], ""
    for part in script.split(";"):
        begun += part + ";"
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements


def has_our_tables(connection: sqlite3.Connection) -> bool:
    """Whether tables, indices and triggers are exactly those of `create_tables`."""
    return connection.execute(_DEFINITIONS).fetchall() == _our_definitions(find_version(connection))


@cache
def _our_definitions(version: int) -> list[tuple[str]]:
    ours = sqlite3.connect(":memory:", isolation_level=None)
    try:
        create_tables(ours, version)
        return ours.execute(_DEFINITIONS).fetchall()
    finally:
        ours.close()
