"""When statements fail, when it is interrupted anywhere, and when the disk is full, file and memory agree."""

import resource
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest

from pivottrace_trl import AnnotationLedger, Answer, Query
from pivottrace_trl.labels import Outcome
from pivottrace_trl.labels import file as ledger_file


LABELS = Path(ledger_file.__file__).parent
IDS = [f"p{number}" for number in range(8)]


class Everyone:
    """An oracle that answers one by one."""

    batch_size = 16

    def ask(self, queries):
        for query in queries:
            yield Answer(query.prompt_id, {"solution": query.prompt_id}, "oracle", 0.5)


def answer(ledger):
    ledger.record([Answer(i, {"solution": "new"}, "ann") for i in IDS[:5]], replace=True)


ACTIONS = {
    "answer": answer,
    "request": lambda ledger: ledger.request([Query(i, f"text of {i}", score=1.0) for i in IDS[2:]], epoch=1),
    "buy": lambda ledger: ledger.buy(Everyone()),
    "undo": lambda ledger: ledger.undo("ann"),
    "skip": lambda ledger: ledger.skip(IDS[6], "ann"),
    "refresh": lambda ledger: ledger.refresh(),
    "own": lambda ledger: ledger.record(
        [Answer(i, {"solution": "own"}, "dataset") for i in IDS[1:6]], replace=True, is_own=True
    ),
    "claim": lambda ledger: ledger.claim(IDS[6], "ann"),
    "budget": lambda ledger: AnnotationLedger(ledger.path, 5, IDS),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    ledger = AnnotationLedger(path, 6, IDS)
    ledger.request([Query(i, None, score=float(n)) for n, i in enumerate(IDS)])
    ledger.record([Answer(i, {"solution": i}, "ann", 1.0) for i in IDS[:3]])
    ledger.close()
    return path


def contents(ledger) -> tuple:
    queue = [query.prompt_id for query in ledger.queue()]
    labels = {i: (ledger.label(i), ledger.author(i)) for i in IDS}
    return labels, queue, ledger.num_bought, ledger.num_left, ledger.last_event


@pytest.fixture
def folder(tmp_path):
    """Where writing is fast: no power fails here."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory)) if memory.is_dir() else tmp_path
    yield path
    shutil.rmtree(path, ignore_errors=True)


def prepare(template, folder) -> AnnotationLedger:
    """A ledger in use: of what another process wrote, it has not seen all."""
    # Each in a folder of its own: a connection that a traceback keeps alive must not meet another file by its name.
    path = Path(tempfile.mkdtemp(dir=folder)) / "ledger.sqlite"
    shutil.copy(template, path)
    ledger = AnnotationLedger(path, 6, IDS)
    other = AnnotationLedger.open(ledger.path)
    other.record([Answer(IDS[3], {"solution": "other"}, "bob")])
    other.close()
    return ledger


def check_agreement(ledger, before) -> None:
    """Nobody is locked out, memory is what the file says, and the ledger goes on."""
    others = sqlite3.connect(ledger.path, isolation_level=None, timeout=0.0)
    others.execute("BEGIN IMMEDIATE")
    others.execute("ROLLBACK")
    others.close()
    fresh = AnnotationLedger.open(ledger.path)
    in_memory = contents(ledger)
    # What others wrote may not have been seen yet; what it did itself is known.
    assert in_memory in (contents(fresh), before)
    if in_memory == before:
        unseen = [event for event in fresh.events() if event["event_id"] > before[-1]]
        assert all(event["author"] == "bob" or event["kind"] == "settings" for event in unseen)
    assert ledger.record([Answer(IDS[7], None, "zoe")]) == [Outcome.DECLINED]
    fresh.refresh()
    assert contents(ledger) == contents(fresh)
    fresh.close()


class FailingConnection(sqlite3.Connection):
    """Fails at one statement, before it or after it was carried out; then, if told so, at each until it is closed."""

    countdown = 10**9
    is_carried_out = lasts = False

    def cursor(self, factory=None):
        return super().cursor(FailingCursor)

    def execute(self, *args):
        return self.cursor().execute(*args)

    def executemany(self, *args):
        return self.cursor().executemany(*args)


class FailingCursor(sqlite3.Cursor):
    def execute(self, sql, *args):
        return self._carry_out(super().execute, sql, *args)

    def executemany(self, sql, *args):
        return self._carry_out(super().executemany, sql, *args)

    def _carry_out(self, execute, *args):
        kind = FailingConnection
        kind.countdown -= 1
        fails = kind.countdown == 0 or (kind.lasts and kind.countdown < 0)
        if fails and not kind.is_carried_out:
            raise sqlite3.OperationalError("disk I/O error")
        result = execute(*args)
        if fails:
            raise sqlite3.OperationalError("disk I/O error")
        return result


@pytest.mark.parametrize("is_carried_out", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "lasting"])
def test_every_statement_fails_in_turn(lasts, is_carried_out, template, folder, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(
        ledger_file.sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=FailingConnection)
    )
    monkeypatch.setattr(FailingConnection, "is_carried_out", is_carried_out)
    failed = 0
    for name, action in ACTIONS.items():
        number = 0
        while True:
            number += 1
            ledger = prepare(template, folder)
            before = contents(ledger)
            FailingConnection.countdown, FailingConnection.lasts = number, lasts
            try:
                action(ledger)
            except (sqlite3.OperationalError, ValueError) as error:
                assert "disk I/O error" in str(error)
                failed += 1
            finally:
                is_through = FailingConnection.countdown > 0
                FailingConnection.countdown, FailingConnection.lasts = 10**9, False
            check_agreement(ledger, before)
            ledger.close()
            shutil.rmtree(ledger.path.parent)
            if is_through:
                break
            assert number < 200, name
    assert failed > 40


def interrupt_at(number, action, ledger) -> bool:
    """Raise KeyboardInterrupt at one of the points of an action; return whether there is such a point."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if event == "call":
            if not frame.f_code.co_filename.startswith(str(LABELS)):
                return None
            frame.f_trace_opcodes = True
            return trace
        count += 1
        if count == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action(ledger)
    finally:
        sys.settrace(before)
    return count >= number


# Every point takes minutes; what is left out differs from action to action.
STRIDE = 61


@pytest.mark.parametrize("stride", [STRIDE, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupted_at_every_point(stride, template, folder):
    num_interrupts = 0
    for start, (name, action) in enumerate(ACTIONS.items(), 1):
        number = start
        while True:
            ledger = prepare(template, folder)
            before = contents(ledger)
            try:
                if not interrupt_at(number, action, ledger):
                    break
                raise AssertionError(f"{name} swallowed an interrupt at point {number}")
            except KeyboardInterrupt:
                num_interrupts += 1
                check_agreement(ledger, before)  # while the traceback still refers to everything
            ledger.close()
            shutil.rmtree(ledger.path.parent)
            number += stride
    assert num_interrupts > 10_000 / stride


def test_a_full_disk(template, folder):
    ledger = prepare(template, folder)
    log = Path(f"{ledger.path}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    num_failures = 0
    for number in range(40):
        before, text = contents(ledger), "word " * 100 * number
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 2000 * number, hard))
        try:
            ledger.record([Answer(i, {"solution": f"{number} {text}"}, "ann") for i in IDS[:5]], replace=True)
        except sqlite3.Error:
            num_failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        in_memory = contents(ledger)
        fresh = AnnotationLedger.open(ledger.path)
        assert in_memory == contents(fresh)
        fresh.close()
        check_agreement(ledger, before)
    assert 5 < num_failures < 40
