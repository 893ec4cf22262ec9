"""Tables of the ledger's file, and how older ones become today's."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path


SCHEMA_VERSION = 2
# Purchases are numbered without gaps, since nothing is ever deleted: the highest number is what was spent.
_SCHEMA = """
CREATE TABLE prompts (
    prompt_id TEXT PRIMARY KEY,
    prompt TEXT  -- for people; NULL where nobody has to read it
);
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
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
# Version 1 kept one row a prompt, knew neither author nor price, and left the budget to whoever opened it.
_FROM_1 = """
INSERT INTO events (kind, value, price, happened_at)
    SELECT 'settings', json_object(
        'budget', (SELECT count(*) FROM answers WHERE label IS NOT NULL),
        'label_column', (SELECT coalesce(min(j.key), 'solution') FROM answers a, json_each(a.label) j),
        'answer_format', 'text'), 0, (SELECT coalesce(min(answered_at), '') FROM answers);
INSERT INTO prompts SELECT prompt_id, NULL FROM answers;
INSERT INTO events (kind, prompt_id, value, price, purpose, epoch, happened_at)
    SELECT 'request', prompt_id, json_object('purpose', purpose, 'route', NULL, 'score', NULL, 'suggestion', NULL), 0,
        purpose, epoch, answered_at FROM answers ORDER BY rowid;
INSERT INTO purchases (prompt_id) SELECT prompt_id FROM answers WHERE label IS NOT NULL ORDER BY rowid;
INSERT INTO events (kind, prompt_id, value, price, purpose, epoch, happened_at)
    SELECT iif(label IS NULL, 'decline', 'answer'), prompt_id, label, 0, purpose, epoch, answered_at
    FROM answers ORDER BY rowid;
DROP TABLE answers;
DROP TABLE meta;
"""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """
    Bring the tables up to date, inside the caller's transaction.

    Args:
        connection (`sqlite3.Connection`): the file.
        path (`Path`): its name, for messages.

    Raises:
        ValueError: if the file was written by a newer version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has ledger version {version}, but this release reads up to {SCHEMA_VERSION}. "
            "Upgrade pivottrace-trl."
        )
    if version == SCHEMA_VERSION:
        return
    for script in [_SCHEMA, _FROM_1] if version == 1 else [_SCHEMA]:
        for statement in _split_statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _split_statements(script: str) -> Iterator[str]:
    # `executescript` would commit the running transaction; triggers hold semicolons of their own.
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
