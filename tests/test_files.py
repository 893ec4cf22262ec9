"""Files are written whole or not at all, whoever else writes them and whatever happens to the machine."""

import json
import os
import stat
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from pivottrace_trl.files import replace_atomically, without_nan, write_json, write_parquet


def test_two_threads_write_the_same_file(tmp_path):
    path = tmp_path / "summary.json"
    meeting = threading.Barrier(2, timeout=20)
    seen, failures = {}, []

    def save(name: str) -> None:
        def write(temporary) -> None:
            temporary.write_text(name * 1000)
            meeting.wait()
            seen[name] = temporary.read_text()
            meeting.wait()

        try:
            replace_atomically(path, write)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and seen == {"a": "a" * 1000, "b": "b" * 1000}
    assert path.read_text() in seen.values() and os.listdir(tmp_path) == ["summary.json"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    path, events = tmp_path / "state.json", []
    path.write_text("old")
    flush, move = os.fsync, os.replace

    def note_flush(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append(("flush", status.st_ino, status.st_size if stat.S_ISREG(status.st_mode) else None))
        flush(descriptor)

    def note_move(source, target) -> None:
        events.append(("move", os.stat(source).st_ino))
        move(source, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_move)
    replace_atomically(path, lambda temporary: temporary.write_text("new content"))
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert events == [("flush", file, len("new content")), ("move", file), ("flush", folder, None)]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_the_umask_and_then_those_of_the_file(umask, tmp_path):
    path = tmp_path / "run.json"
    before = os.umask(umask)
    try:
        replace_atomically(path, lambda temporary: temporary.write_text("1"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        path.chmod(0o640)
        replace_atomically(path, lambda temporary: temporary.write_text("2"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.read_text() == "2"


def test_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    # Where the temporary file of this process would lie, had it a name that can be known.
    (tmp_path / f".link.{os.getpid()}").symlink_to(tmp_path / "precious")
    replace_atomically(tmp_path / "link", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")

    def fail(temporary) -> None:
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        replace_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_tables_and_json_are_read_back_as_they_were(tmp_path):
    write_json(tmp_path / "new" / "summary.json", {"routes": [1, 2], "name": "é"})
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == {"routes": [1, 2], "name": "é"}
    write_parquet(tmp_path / "a.parquet", {"score": np.array([0.5, 1.0])})
    write_parquet(tmp_path / "b.parquet", pq.read_table(tmp_path / "a.parquet"))
    assert pq.read_table(tmp_path / "b.parquet").to_pydict() == {"score": [0.5, 1.0]}


def test_what_json_cannot_hold_is_none():
    given = {"error": float("nan"), "limits": (np.float64("inf"), -0.5), "arms": [{"label": "nan"}]}
    assert without_nan(given) == {"error": None, "limits": [None, -0.5], "arms": [{"label": "nan"}]}
