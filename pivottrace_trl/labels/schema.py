"""Tables of the ledger's file."""

import sqlite3
from functools import cache


SCHEMA_VERSION = 3
# Stands in the header of the file, where nobody has to open a database to see whose it is.
APPLICATION_ID = 0x50545254
# Purchases are numbered without gaps, since nothing is ever deleted: the highest number is what was spent.
_SCHEMA = """
CREATE TABLE prompts (
    prompt_id TEXT PRIMARY KEY,
    prompt TEXT,  -- for people; NULL where nobody has to read it
    digest TEXT NOT NULL
);
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN
        ('settings', 'request', 'withdraw', 'answer', 'decline', 'broken', 'skip', 'undo', 'unused')),
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
CREATE INDEX events_of_a_prompt ON events (prompt_id, event_id) WHERE kind IN ('answer', 'unused');
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
_DEFINITIONS = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database."""
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT;")


def has_our_tables(connection: sqlite3.Connection) -> bool:
    """Whether tables, indices and triggers are those of `create_tables`, to the letter."""
    return connection.execute(_DEFINITIONS).fetchall() == _our_definitions()


@cache
def _our_definitions() -> list[tuple[str]]:
    ours = sqlite3.connect(":memory:", isolation_level=None)
    try:
        create_tables(ours)
        return ours.execute(_DEFINITIONS).fetchall()
    finally:
        ours.close()
