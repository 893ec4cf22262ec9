"""`pivottrace annotate` and `pivottrace desk`: what people do with the queue of a run."""

import argparse
import importlib.util
from pathlib import Path

from .arguments import add_format_of_ledger, add_on_run, open_ledger, read_price, user_name
from .ask import add_ask


def add_annotate(commands) -> None:
    parser = commands.add_parser("annotate", help="hand out the queue, take answers in, see where it stands")
    actions = parser.add_subparsers(dest="action", required=True)
    for add_action in (_add_export, _add_import, add_ask, _add_backup):
        add_action(actions)
    add_on_run(actions, "status", _status, "queue, spend, throughput, and who answered")


def _add_export(actions) -> None:
    add = add_on_run(actions, "export", _export, "write the queue, most valuable first, with room for the answers")
    add("--format", default="jsonl", choices=["jsonl", "csv", "parquet", "label-studio"])
    add("--output", type=Path, help="file (default: queue.jsonl and so on, beside the ledger)")
    add(
        "--with-suggestions",
        action="store_true",
        help="show the policy's own answer: saves typing, but biases people towards its errors",
    )
    add("--limit", type=int, help="number of queries (default: all)")


def _export(args: argparse.Namespace) -> None:
    from ..labels.exchange import export_queue
    from ..labels.exchange.exporting import SUFFIXES

    ledger = open_ledger(args.run)
    path = args.output or ledger.path.with_name("queue" + SUFFIXES[args.format])
    count = export_queue(ledger, path, args.format, args.with_suggestions, args.limit)
    print(f"{count} queries in {path}. Fill in `answer` and run: pivottrace annotate import {args.run} {path}")


def _add_import(actions) -> None:
    add = add_on_run(actions, "import", _import, "take answers in; a file may be partial, and may be imported again")
    add("file", type=Path, help=".jsonl, .csv, .parquet, or .json from Label Studio")
    add("--author", default=user_name(), help="who answered, where the file does not say")
    add("--price", type=read_price, default=0.0, help="price of an answer, where the file does not say")
    add("--replace", action="store_true", help="let these answers take the place of others")
    add("--own", action="store_true", help="labels that you had before: they cost nothing, of the budget neither")
    add_format_of_ledger(add)


def _import(args: argparse.Namespace) -> None:
    from ..labels.exchange import import_answers

    ledger = open_ledger(args.run)
    options = {"answer_format": args.answer_format, "is_own": args.own}
    report = import_answers(ledger, args.file, args.author, args.price, args.replace, **options)
    what = "labels of your own" if args.own else "answers"
    print(
        f"{report.recorded} {what} recorded, {report.duplicates} known before, {report.unanswered} not answered yet, "
        f"{report.rejected} rejected. {ledger.num_bought} of {ledger.budget} labels are bought."
    )
    if report.rejected_path is not None:
        reasons = ", ".join(f"{count} {kind}" for kind, count in report.reasons.items())
        print(f"Rejected: {reasons}. Each with its reason in {report.rejected_path}")


def _add_backup(actions) -> None:
    add = add_on_run(actions, "backup", _backup, "copy the ledger, its log included, also while a run writes to it")
    add("file", type=Path, help="the copy; an older copy is replaced")


def _backup(args: argparse.Namespace) -> None:
    ledger = open_ledger(args.run)
    count = ledger.backup(args.file)
    print(f"{args.file} holds the ledger of {args.run} with {count} labels, and was read back.")


def _status(args: argparse.Namespace) -> None:
    from ..labels.status import annotation_status
    from ..report.tables import print_status

    print_status(annotation_status(open_ledger(args.run)))


def add_desk(commands) -> None:
    add = add_on_run(commands, "desk", _desk, "a local page for a person who answers, and the run's picture")
    add("--author", default=user_name(), help="who answers (default: %(default)s)")
    add("--price", type=read_price, default=0.0, help="price of an answer (default: %(default)s)")
    add(
        "--show-attempts",
        action="store_true",
        help="show the policy's attempt, its pivots marked: tells where it hesitated, but biases people",
    )
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    add("--no-token", action="store_true", help="let in everybody who reaches the address")
    add_format_of_ledger(add)


def _desk(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the desk needs Gradio: pip install "pivottrace-trl[desk]"')
    ledger = open_ledger(args.run)
    from ..desk.server import serve  # takes seconds to import

    serve(
        ledger,
        args.author,
        host=args.host,
        port=args.port,
        show_attempts=args.show_attempts,
        price=args.price,
        has_token=not args.no_token,
        answer_format=args.answer_format,
        announce=lambda text: print(text, flush=True),
    )
