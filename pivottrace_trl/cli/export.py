"""`pivottrace annotate export`: the queue for people, the labels and the routes for trainers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_on_run, open_ledger, say_next


if TYPE_CHECKING:
    from ..labels.ledger import AnnotationLedger


def add_export(actions) -> None:
    add = add_on_run(
        actions,
        "export",
        _export,
        "write the queue for people to answer, the labels, or the whole pool with its routes",
        examples="pivottrace annotate export run --format csv --limit 200\n"
        "pivottrace annotate export run --labels --format parquet\n"
        "pivottrace annotate export run --labels --push-to-hub me/labels\n"
        "pivottrace annotate export run --routes --format parquet",
    )
    add("--labels", action="store_true", help="the labels instead of the queue: prompt, label, author, price, time")
    add("--routes", action="store_true", help="the whole pool instead: prompt, route, score, weight, label if bought")
    add("--format", choices=["jsonl", "csv", "parquet", "label-studio"], help="of the file (default: jsonl)")
    add("--output", type=Path, help="file (default: queue, labels or routed beside the ledger)")
    add(
        "--with-suggestions",
        action="store_true",
        help="show what the policy and models said: saves typing, but biases people towards their errors",
    )
    add("--limit", type=int, help="number of queries (default: all)")
    add("--push-to-hub", metavar="NAME", help="with --labels: upload them as this dataset, private, instead of a file")
    add("--public", action="store_true", help="with --push-to-hub: let everybody see it")


def _export(args: argparse.Namespace) -> None:
    from ..labels.exchange import export_queue
    from ..labels.exchange.exporting import SUFFIXES

    if args.push_to_hub is not None and not args.labels:
        raise ValueError(f"--push-to-hub {args.push_to_hub} is for labels, and for nothing else. Add --labels.")
    if args.push_to_hub is not None and (args.output, args.format) != (None, None):
        raise ValueError(
            "--output and --format are for a file, but --push-to-hub uploads the labels, as Parquet. Leave them out, "
            "or call it once for each."
        )
    args.format = args.format or "jsonl"
    if args.public and args.push_to_hub is None:
        raise ValueError("--public says who sees an upload, but there is none. Add --push-to-hub NAME.")
    if args.labels and args.routes:
        raise ValueError("--labels and --routes are two files. Ask for one at a time.")
    ledger = open_ledger(args.run)
    if args.labels or args.routes:
        _export_dataset(args, ledger)
        return
    path = args.output or ledger.path.with_name("queue" + SUFFIXES[args.format])
    count = export_queue(ledger, path, args.format, args.with_suggestions, args.limit)
    print(f"{count} queries in {path}. Fill in `answer`.")
    say_next(("to take the answers in", ["annotate", "import", args.run, path]))


def _export_dataset(args: argparse.Namespace, ledger: "AnnotationLedger") -> None:
    from ..labels.exchange.exporting import write_dataset
    from ..labels.hub import push_labels
    from ..report.routed import routed_dataset

    if args.limit is not None or args.with_suggestions:
        raise ValueError("--limit and --with-suggestions are for questions, not for labels. Leave them out.")
    if args.push_to_hub is not None:
        print(f"Labels are in {push_labels(ledger, args.push_to_hub, args.public)}. Do not evaluate on them.")
        return
    dataset = ledger.to_dataset() if args.labels else routed_dataset(ledger)
    path = args.output or ledger.path.with_name(f"{'labels' if args.labels else 'routed'}.{args.format}")
    write_dataset(dataset, path, args.format)
    what = "labels" if args.labels else "prompts with routes"
    print(f"{len(dataset)} {what} in {path}. Labels are no random sample: train on them, and do not evaluate.")
