"""`pivottrace annotate` and `pivottrace desk`: what people do with the queue of a run."""

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path

from .arguments import add_format_of_ledger, add_on_run, add_parser, open_ledger, read_price, say_next, user_name
from .ask import add_ask
from .export import add_export


def add_annotate(commands) -> None:
    parser = add_parser(
        commands,
        "annotate",
        "hand out the queue, take answers in, see where it stands",
        examples="pivottrace annotate export run --format csv\n"
        "pivottrace annotate import run run/_pivottrace/queue.csv --author maria\n"
        "pivottrace annotate status run",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for add_action in (add_export, _add_import, add_ask, _add_backup, _add_status):
        add_action(actions)


def _add_import(actions) -> None:
    add = add_on_run(
        actions,
        "import",
        _import,
        "take answers in; a file may be partial, and may be imported again",
        examples="pivottrace annotate import run queue.csv --author maria --price 0.40\n"
        "pivottrace annotate import run labels.jsonl --own",
        kept="What was taken in is in the ledger of {run}; the same command takes in the rest.",
    )
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
    say_next(("to see what labels cost and brought so far", ["annotate", "status", args.run]))


def _add_backup(actions) -> None:
    add = add_on_run(
        actions,
        "backup",
        _backup,
        "copy the ledger, its log included, also while a run writes to it",
        examples="pivottrace annotate backup run ledger-copy.sqlite",
    )
    add("file", type=Path, help="the copy; an older copy is replaced")


def _backup(args: argparse.Namespace) -> None:
    ledger = open_ledger(args.run)
    count = ledger.backup(args.file)
    print(f"{args.file} holds the ledger of {args.run} with {count} labels, and was read back.")


def _add_status(actions) -> None:
    add = add_on_run(
        actions,
        "status",
        _status,
        "what labels cost and brought: spend, queue, pace, authors, routes",
        examples="pivottrace annotate status run\npivottrace annotate status run --json",
    )
    add("--json", action="store_true", help="print it as JSON, for programs")


def _status(args: argparse.Namespace) -> None:
    from ..labels.status import annotation_status
    from ..report.status import describe_status, label_gains

    ledger = open_ledger(args.run)
    status, gains = annotation_status(ledger), label_gains(ledger)
    if args.json:
        print(json.dumps({**dataclasses.asdict(status), "gains": dataclasses.asdict(gains)}, indent=1))
    else:
        print(describe_status(status, gains))


def add_desk(commands) -> None:
    add = add_on_run(
        commands,
        "desk",
        _desk,
        "a local page for a person who answers, and the run's picture",
        examples="pivottrace desk run\npivottrace desk run --author maria --price 0.40 --port 7861",
        kept="Every answer is in the ledger of {run}.",
    )
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
