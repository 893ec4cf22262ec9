"""How a command that fails says so: one line, in the words of the command line."""

import argparse
import re
import shlex
import sqlite3
import traceback
from pathlib import Path


INTERRUPTED = 130  # as shells have it: 128 and the number of the signal
_PACKAGE = str(Path(__file__).parent.parent)
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")


def explain(error: BaseException, args: argparse.Namespace) -> tuple[int, str]:
    """
    Exit status and one line of text: 2 for an input that cannot be used, 130 for an interrupt, else 1.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted. {args.kept.format(**vars(args))}"
    status, text = _explain(error)
    return status, " ".join(in_flags(text, args.flags).split())


def in_flags(text: str, flags: dict[str, str]) -> str:
    """A message of the package, which names arguments of Python, as it is said to who typed options."""

    def flag(match: re.Match) -> str:
        name, value = match.groups()
        if name not in flags:
            return match[0]
        return f"{flags[name]} {shlex.quote(value.strip(chr(34)))}" if value else flags[name]

    return _ARGUMENT.sub(flag, text)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, sqlite3.OperationalError):
        cause = "another program holds it, or the disk is full. Try again later."
        return 2, f"the ledger cannot be used ({error}): {cause}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # that of torch, not imported
        cure = "Take a smaller `batch_size` or `max_completion_length`, `load_in_4bit`, or a smaller model."
        return 1, f"out of memory ({str(error)[:200] or type(error).__name__}). {cure}"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return 2, str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and _is_said_here(error):
        return 1, str(error)
    what = f"{type(error).__name__}: {error}".rstrip(". ")
    return 1, f"{what}. This is a bug. Run the same again with --debug, and report what it prints."


def _is_said_here(error: BaseException) -> bool:
    """Whether the package itself raised it, in words of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)
