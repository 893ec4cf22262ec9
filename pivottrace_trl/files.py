"""Writing files so that a crash never leaves half of one."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """
    Write a file beside its place and move it there.

    Args:
        path (`Path`): the file; its folder is made if absent.
        write (`Callable[[Path], object]`): writes the content to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
