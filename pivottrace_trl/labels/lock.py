"""A lock that admits one run at a time to a folder."""

import logging
import os
import sys
import threading
import weakref
from pathlib import Path


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1024, os.SEEK_SET)  # what is locked cannot be read: not the number of the process
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


logger = logging.getLogger(__name__)
# Keyed by device and inode, as a folder may be moved while its ledger is open.
_held: "weakref.WeakValueDictionary[tuple[int, int], RunLock]" = weakref.WeakValueDictionary()
# Reentrant, as an interrupt may leave it held, and must not lock this thread out forever.
_held_lock = threading.RLock()


class RunLock:
    """
    A lock that one process holds at a time. It is released when nothing in that process refers to it any more, or when
    the process dies.
    """

    def __init__(self, path: Path, descriptor: int):
        self.pid = os.getpid()
        close = weakref.finalize(self, os.close, descriptor)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 20).decode(errors="replace")
            close()
            raise RuntimeError(
                f"{path.parent} belongs to a run that is alive (process {holder or 'unknown'}): two runs in one "
                "folder would mix their labels. Wait for it to end, or choose another `output_dir`. Only `pivottrace "
                "annotate` and `pivottrace desk` can use the folder at the same time."
            ) from None
        except OSError as error:
            logger.warning(f"{path.parent} cannot be locked ({error}). Do not start a second run in this folder.")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, str(self.pid).encode())


def hold(path: Path) -> RunLock:
    """
    Take the lock on a file, or share it within this process. The file is created if it does not exist, and is never
    deleted.

    Raises:
        RuntimeError: if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    file = os.fstat(descriptor)
    key = (file.st_dev, file.st_ino)
    with _held_lock:
        lock = _held.get(key)
        # A forked process inherits this entry, but not the lock.
        if lock is not None and lock.pid == os.getpid():
            os.close(descriptor)
            return lock
        lock = _held[key] = RunLock(path, descriptor)
        return lock
