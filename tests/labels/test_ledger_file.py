"""The ledger's file: what is no ledger is left alone, damage is named, one run has it at a time, a copy is whole."""

import multiprocessing
import os
import random
import shutil
import sqlite3

import pytest

from pivottrace_trl import AnnotationLedger, Answer, Query
from pivottrace_trl.cli import main
from pivottrace_trl.labels import Outcome


IDS = [f"p{number}" for number in range(12)]


def make_ledger(path, budget=8) -> AnnotationLedger:
    """A ledger with every kind of event in it."""
    ledger = AnnotationLedger(path, budget, IDS)
    ledger.request([Query(i, f"What is {i}?", score=float(n), suggestion="7") for n, i in enumerate(IDS)])
    ledger.record([Answer(i, {"solution": f"label {i}"}, "ann", 0.5) for i in IDS[:6]])
    ledger.record([Answer(IDS[0], {"solution": "another"}, "bob"), Answer(IDS[6], None, "bob")])
    ledger.undo("ann")
    ledger.skip(IDS[7], "bob")
    ledger.mark_broken(IDS[8], "bob")
    return ledger


def everything(path) -> tuple:
    """All that a ledger says."""
    ledger = AnnotationLedger.open(path)
    try:
        labels = {i: (ledger.label(i), ledger.author(i), ledger.has_declined(i)) for i in IDS}
        settings = (ledger.budget, ledger.label_column, ledger.answer_format)
        return labels, settings, ledger.num_bought, ledger.queue(), ledger.events()
    finally:
        ledger.close()


def foreign_database(path, user_version=0):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.execute("INSERT INTO notes VALUES ('do not lose me')")
    connection.execute(f"PRAGMA user_version = {user_version}")
    connection.commit()
    connection.close()


FOREIGN = {
    **{f"version {n}": lambda path, n=n: foreign_database(path, n) for n in (0, 1, 2, 3, 4, 99)},
    "text": lambda path: path.write_bytes(b"these are my notes, do not lose them " * 100),
    "short": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("how", ["run", "beside", "backup"])
def test_what_is_no_ledger_is_left_as_it_is(kind, how, tmp_path):
    path = tmp_path / "ledger.sqlite"
    FOREIGN[kind](path)
    before = path.read_bytes() if path.is_file() else None
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=r"ledger\.sqlite is not a ledger: it is .*left as it is"):
        if how == "run":
            AnnotationLedger(path, 3, IDS)
        elif how == "beside":
            AnnotationLedger.open(path)
        else:
            with_labels = make_ledger(tmp_path / "sound" / "ledger.sqlite")
            shutil.copytree(tmp_path / "sound", tmp_path / "copied")
            with_labels.backup(path)
    assert (path.read_bytes() if path.is_file() else None) == before
    if how != "backup":
        assert sorted(os.listdir(tmp_path)) == names


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "ledger.sqlite"
    make_ledger(path).close()
    sound, content, rng = everything(path), path.read_bytes(), random.Random(0)
    num_noticed = 0
    for _ in range(700):
        damaged = bytearray(content)
        place = rng.randrange(len(content))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert everything(path) == sound, f"byte {place}"
        except ValueError as error:
            num_noticed += 1
            assert str(path) in str(error)
            assert path.read_bytes() == damaged, "it is left as it is"
        for leftover in tmp_path.glob("ledger.sqlite-[ws]*"):
            leftover.unlink()
    assert num_noticed > 100


def test_a_flipped_bit_in_a_value_is_noticed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    make_ledger(path).close()
    content = path.read_bytes()
    for word in (b'"label p1"', b"What is p9?", b'"budget": 8', b"broken"):
        assert word in content
        flipped = bytearray(content)
        flipped[content.rindex(word) + len(word) - 2] ^= 1  # still a letter or a figure
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged .*is not what was written.*Restore a backup"):
            everything(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_named(share, tmp_path):
    path = tmp_path / "ledger.sqlite"
    make_ledger(path).close()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"ledger\.sqlite (is damaged|is not a ledger|cannot be opened)"):
        AnnotationLedger(path, 8, IDS)


def drop_rows(connection, table, where):
    query = "SELECT sql FROM sqlite_master WHERE name = ?"
    (trigger,) = connection.execute(query, (f"{table}_stay",)).fetchone()
    connection.execute(f"DROP TRIGGER {table}_stay")
    connection.execute(f"DELETE FROM {table} WHERE {where}")
    connection.execute(trigger)


def test_events_that_were_taken_out_are_noticed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    make_ledger(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    drop_rows(connection, "events", "kind = 'skip'")
    connection.close()
    with pytest.raises(ValueError, match="event .* is not what was written"):
        AnnotationLedger.open(path)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "ledger.sqlite"
    make_ledger(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    drop_rows(connection, "purchases", "number = 2")
    connection.close()
    with pytest.raises(ValueError, match="5 purchases do not match 6 answered prompts"):
        AnnotationLedger.open(path)


def test_a_backup_of_a_ledger_that_is_in_use(tmp_path, capsys):
    run = tmp_path / "run"
    ledger = make_ledger(run / "ledger.sqlite")
    assert (run / "ledger.sqlite-wal").stat().st_size > 0  # what was written last stands in the log only
    target = tmp_path / "backup.sqlite"
    assert main(["annotate", "backup", str(run), str(target)]) == 0
    assert "6 labels" in capsys.readouterr().out
    expected = everything(run / "ledger.sqlite")
    assert everything(target) == expected
    assert not list(tmp_path.glob("backup.sqlite-*")), "it is one file"
    # The run goes on, and a later copy takes the place of the older one.
    assert ledger.record([Answer(IDS[9], {"solution": "9"}, "ann")]) == [Outcome.RECORDED]
    assert main(["annotate", "backup", str(run), str(target)]) == 0
    assert everything(target)[2] == expected[2] + 1
    # It is put back by copying it to the place of the ledger, without the log of the old one.
    ledger.close()
    restored = tmp_path / "restored" / "ledger.sqlite"
    restored.parent.mkdir()
    shutil.copy(target, restored)
    again = AnnotationLedger(restored, 8, IDS)
    assert again.num_bought == 7 and again.record([Answer(IDS[10], {"solution": "10"}, "ann")]) == [Outcome.RECORDED]


def test_a_backup_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    ledger = make_ledger(tmp_path / "ledger.sqlite")
    ledger.backup(tmp_path / "copy.sqlite")
    before = (tmp_path / "copy.sqlite").read_bytes()
    with pytest.raises(ValueError, match="is the ledger itself"):
        ledger.backup(tmp_path / "ledger.sqlite")

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        ledger.backup(tmp_path / "copy.sqlite")
    assert (tmp_path / "copy.sqlite").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_an_unknown_folder_has_nothing_to_back_up(tmp_path, capsys):
    assert main(["annotate", "backup", str(tmp_path), str(tmp_path / "copy.sqlite")]) == 2
    assert "There is no ledger in" in capsys.readouterr().err and not (tmp_path / "copy.sqlite").exists()


def start_a_run(path, budget, results):
    try:
        AnnotationLedger(path, budget, IDS)
        results.put("started")
    except RuntimeError as error:
        results.put(str(error))
    results.put(AnnotationLedger.open(path).record([Answer(IDS[1], {"solution": "1"}, "bob")])[0])


def test_a_second_run_is_refused_while_the_first_is_alive(tmp_path):
    spawn, path = multiprocessing.get_context("spawn"), tmp_path / "ledger.sqlite"
    first = AnnotationLedger(path, 2, IDS)
    first.request([Query(i) for i in IDS])
    results = spawn.Queue()
    second = spawn.Process(target=start_a_run, args=(path, 9, results))
    second.start()
    message, outcome = results.get(timeout=60), results.get(timeout=60)
    second.join(60)
    assert "belongs to a run that is alive" in message and str(os.getpid()) in message
    # Annotators may write beside it, and the budget is that of the first.
    assert outcome is Outcome.RECORDED
    first.refresh()
    assert first.budget == 2 and AnnotationLedger.open(path).budget == 2 and first.num_left == 1
    first.close()
    second = spawn.Process(target=start_a_run, args=(path, 9, results))
    second.start()
    assert results.get(timeout=60) == "started"
    second.join(60)


def hold_and_die(path, ready):
    ledger = AnnotationLedger(path, 2, IDS)
    ready.set()
    while ledger is not None:
        pass


def test_a_run_that_was_killed_does_not_block_the_next(tmp_path):
    spawn, path = multiprocessing.get_context("spawn"), tmp_path / "ledger.sqlite"
    ready = spawn.Event()
    first = spawn.Process(target=hold_and_die, args=(path, ready), daemon=True)
    first.start()
    assert ready.wait(60)
    with pytest.raises(RuntimeError, match="two runs in one folder"):
        AnnotationLedger(path, 3, IDS)
    first.kill()
    first.join(60)
    assert AnnotationLedger(path, 3, IDS).budget == 3


def test_a_folder_that_was_moved_is_the_same_folder(tmp_path):
    first = AnnotationLedger(tmp_path / "here" / "ledger.sqlite", 2, IDS)
    os.rename(tmp_path / "here", tmp_path / "there")
    assert AnnotationLedger(tmp_path / "there" / "ledger.sqlite", 3, IDS).budget == 3
    first.close()


def test_two_runs_of_one_process_keep_their_own_budgets(tmp_path):
    path = tmp_path / "ledger.sqlite"
    first, second = AnnotationLedger(path, 2, IDS), AnnotationLedger(path, 5, IDS)
    first.request([Query(i) for i in IDS])
    assert second.record([Answer(i, {"solution": "1"}, "ann") for i in IDS[:4]]) == [Outcome.RECORDED] * 4
    first.refresh()
    assert (first.budget, first.num_left, second.budget, second.num_left) == (2, 0, 5, 1)
    assert first.record([Answer(IDS[5], {"solution": "1"}, "ann")]) == [Outcome.OVER_BUDGET]
    assert second.record([Answer(IDS[6], {"solution": "1"}, "ann")]) == [Outcome.RECORDED]
