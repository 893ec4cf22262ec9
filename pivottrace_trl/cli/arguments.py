"""What the commands have in common: how one is added, how its arguments are read, and what it says at its end."""

import argparse
import getpass
import math
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any


Body = Callable[[argparse.Namespace], None]
Add = Callable[..., argparse.Action]  # `add_argument` of a parser


def add_parser(commands, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, a line each."""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{textwrap.indent(examples, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_debug(parser, default=argparse.SUPPRESS)
    return parser


def add_debug(parser: argparse.ArgumentParser, default: Any) -> None:
    """`--debug`, which may stand before or after the command: without a default of its own a command leaves it be."""
    parser.add_argument("--debug", action="store_true", default=default, help="show where an error comes from")


def add_command(
    commands,
    name: str,
    body: Body,
    help: str,
    examples: str,
    kept: str = "Nothing is kept; the same command begins anew.",
) -> Add:
    """
    A command, as the function that adds its arguments. `kept` says what is left of it after Ctrl+C; it may name
    arguments in braces.
    """
    parser = add_parser(commands, name, help, examples)
    flags: dict[str, str] = {}
    parser.set_defaults(body=body, kept=kept, flags=flags, prog=parser.prog)

    def add(*names: str, **options: Any) -> argparse.Action:
        action = parser.add_argument(*names, **options)
        if action.option_strings:
            flags[action.dest] = action.option_strings[-1]
        return action

    return add


def add_on_run(commands, name: str, body: Body, help: str, examples: str, **options: str) -> Add:
    """A command on the folder of a run."""
    add = add_command(commands, name, body, help, examples, **options)
    add("run", type=Path, help="folder of a run: `output_dir` of a training, or `--output` of a triage")
    return add


def say_next(*steps: tuple[str, list[Any]]) -> None:
    """Print what may come next: what for, and the words of a command, ready to be pasted."""
    for number, (purpose, words) in enumerate(steps):
        print(f"{'Or' if number else 'Next'}, {purpose}:\n  {shlex.join(['pivottrace', *map(str, words)])}")


def open_ledger(run: Path):
    """The ledger of a run."""
    from ..files import PRIVATE_FOLDER
    from ..labels.ledger import AnnotationLedger

    places = [run / "ledger.sqlite", run / PRIVATE_FOLDER / "ledger.sqlite"]
    for path in places:
        if path.is_file():
            return AnnotationLedger.open(path)
    raise FileNotFoundError(
        f"There is no ledger in {run}: neither {places[0]} nor {places[1]} exists. Name the `output_dir` of a "
        "training or the --output of a triage."
    )


def add_format_of_ledger(add: Add) -> None:
    """The argument that allows a format of the user's own."""
    add(
        "--answer-format",
        help="that of the run, if it is one of yours (package.module:attribute): no file alone has code loaded",
    )


def user_name() -> str:
    """Who is logged in."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        return "unknown"


def read_count(text: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
    return int(text)


def read_price(text: str) -> float:
    """A price of at least 0."""
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0.0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price of at least 0")
    return price
