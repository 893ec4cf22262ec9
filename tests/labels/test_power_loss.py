"""
The ledger when the power fails. What reaches its files is recorded, and played back to any moment, with what was not
synchronised by then kept, dropped or torn, as a disk may.
"""

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pivottrace_trl import AnnotationLedger, Answer, Query


IDS = [f"p{number}" for number in range(12)]
SECTOR = 512
# Notes what a process does to the files of a ledger, in order.
RECORDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void note(int64_t kind, int fd, int64_t offset, const void *data, int64_t size) {
    static int log = -1;
    char link[64], path[4096], head[64] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    char *name = strrchr(path, '/');
    if (!name || strncmp(name, "/ledger.sqlite", 14) || strstr(name, "-shm")) return;
    if (log < 0) log = open(getenv("DISK_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    memcpy(head, &kind, 8); memcpy(head + 8, &offset, 8); memcpy(head + 16, &size, 8);
    strncpy(head + 24, name + 1, 39);
    if (write(log, head, sizeof head) < 0 || (size && write(log, data, size) < 0)) abort();
}
#define REAL(name, type) static type real; if (!real) real = (type) dlsym(RTLD_NEXT, name)
typedef ssize_t (*write_type)(int, const void *, size_t, off_t);
typedef int (*size_type)(int, off_t);
typedef int (*sync_type)(int);
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    REAL("pwrite", write_type);
    ssize_t done = real(fd, data, size, offset);
    if (done > 0) note(0, fd, offset, data, done);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }
int ftruncate(int fd, off_t size) { REAL("ftruncate", size_type); note(1, fd, size, 0, 0); return real(fd, size); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int fsync(int fd) { REAL("fsync", sync_type); int done = real(fd); note(2, fd, 0, 0, 0); return done; }
int fdatasync(int fd) { REAL("fdatasync", sync_type); int done = real(fd); note(2, fd, 0, 0, 0); return done; }
"""
WRITE, TRUNCATE, SYNC = range(3)


def actions():
    """What the ledger does, one acknowledged action after the other."""
    yield lambda ledger: ledger.request([Query(i, f"text of {i} " * 20, score=1.0) for i in IDS])
    for number in range(24):
        identity, text = IDS[number % 8], f"{number} " * (10 + 7 * number)
        yield lambda ledger, i=identity, t=text: ledger.record([Answer(i, {"solution": t}, "ann")], replace=True)
        if number % 5 == 4:
            yield lambda ledger: ledger.undo("ann")


def contents(ledger) -> tuple:
    return {i: ledger.label(i) for i in IDS}, ledger.num_bought, ledger.last_event, len(ledger.queue())


def work(path: str, synchronous: str) -> None:
    """In a process of its own, on the recorded disk: act, and say how many actions were acknowledged."""
    ledger = AnnotationLedger(path, 9, IDS)
    ledger._file.connection.execute(f"PRAGMA synchronous={synchronous}")
    ledger._file.connection.execute("PRAGMA wal_autocheckpoint=25")
    mark = os.open(f"{path}-mark", os.O_WRONLY | os.O_CREAT)
    for number, action in enumerate(actions(), 1):
        action(ledger)
        os.pwrite(mark, str(number).encode(), 0)
    os._exit(0)  # without the clean-up of an orderly end


def read_log(path: Path):
    """`(kind, name, offset, data)` of each operation."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        kind, offset, size = struct.unpack_from("<qqq", data, place)
        name = data[place + 24 : place + 64].rstrip(b"\0").decode()
        yield kind, name, offset, data[place + 64 : place + 64 + size]
        place += 64 + size


def put(content: bytearray, operation, rng: random.Random | None = None) -> None:
    """Carry out a write or a change of length; with `rng`, some of its sectors only."""
    kind, _, offset, data = operation
    if kind == TRUNCATE:
        del content[offset:]
        content.extend(bytes(max(offset - len(content), 0)))
        return
    content.extend(bytes(max(offset + len(data) - len(content), 0)))
    for start in range(0, len(data), SECTOR):
        if rng is None or rng.random() < 0.5:
            content[offset + start : offset + start + SECTOR] = data[start : start + SECTOR]


def power_losses(before: bytes, operations, rng: random.Random):
    """For every moment what the disk may hold afterwards, and how many actions were acknowledged by then."""
    durable, pending, num_acknowledged = {"ledger.sqlite": bytearray(before)}, {}, 0
    for operation in operations:
        kind, name, _, data = operation
        if name.endswith("-mark"):
            num_acknowledged = int(data)
        elif kind == SYNC:
            for late in pending.pop(name, []):
                put(durable.setdefault(name, bytearray()), late)
        else:
            pending.setdefault(name, []).append(operation)
        for fate in ("dropped", "kept", "torn"):
            disk = {name: bytearray(content) for name, content in durable.items()}
            for name, late in pending.items():
                for operation in late:
                    if fate == "kept" or (fate == "torn" and rng.random() < 0.7):
                        put(disk.setdefault(name, bytearray()), operation, rng if fate == "torn" else None)
            yield disk, num_acknowledged


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("recorder")
    (folder / "recorder.c").write_text(RECORDER)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", "recorder.so", "recorder.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "recorder.so"


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_when_the_power_fails(synchronous, recorder, tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = AnnotationLedger(path, 9, IDS)
    ledger.close()
    before = path.read_bytes()
    expected = AnnotationLedger(tmp_path / "expected" / "ledger.sqlite", 9, IDS)
    states = [contents(expected)]
    for action in actions():
        action(expected)
        states.append(contents(expected))
    environment = {**os.environ, "LD_PRELOAD": str(recorder), "DISK_LOG": str(tmp_path / "log")}
    program = f"from tests.labels.test_power_loss import work; work({str(path)!r}, {synchronous!r})"
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=Path(__file__).parents[2], check=True)
    operations = list(read_log(tmp_path / "log"))
    assert sum(name.endswith("-mark") for _, name, _, _ in operations) == len(states) - 1
    assert {"ledger.sqlite", "ledger.sqlite-wal"} <= {name for kind, name, _, _ in operations if kind == WRITE}

    memory = Path("/dev/shm")
    played = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    num_losses = num_lost = 0
    try:
        for disk, num_acknowledged in power_losses(before, operations, random.Random(0)):
            num_losses += 1
            for leftover in played.iterdir():
                leftover.unlink()
            for name, content in disk.items():
                (played / name).write_bytes(content)
            try:
                recovered = AnnotationLedger.open(played / "ledger.sqlite")
            except ValueError as error:
                assert synchronous == "NORMAL", error
                num_lost += 1
                continue
            # An action that was acknowledged is there; the one that was under way may be.
            is_there = contents(recovered) in states[num_acknowledged : num_acknowledged + 2]
            assert is_there or synchronous == "NORMAL"
            num_lost += not is_there
            recovered.close()
    finally:
        shutil.rmtree(played)
    assert num_losses > 300
    # The control: what is not synchronised at each commit is lost, so that the test can fail.
    assert (num_lost == 0) if synchronous == "FULL" else (num_lost > 20)
