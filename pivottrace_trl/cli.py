"""The `pivottrace` command: parse, call, print."""

import argparse
import getpass
import importlib.util
import math
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn


_Body = Callable[[argparse.Namespace], None]
_Add = Callable[..., argparse.Action]  # `add_argument` of a parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns 0 for success, 2 for an input that cannot be used, 1 for any other failure."""
    parser = _Parser(prog="pivottrace", description="Pick the prompts that deserve a label.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add_command in (_add_triage, _add_study, _add_annotate, _add_desk, _add_report, _add_demo):
        add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.body(args)
        return 0
    except Exception as error:
        if args.debug:
            raise
        status, text = _explain(error)
        print(f"pivottrace {args.command}: {' '.join(text.split())}", file=sys.stderr)
        return status


def _explain(error: Exception) -> tuple[int, str]:
    """Exit status and text."""
    if isinstance(error, sqlite3.OperationalError):
        cause = "another program holds it, or the disk is full. Try again later."
        return 2, f"the ledger cannot be used ({error}): {cause}"
    if isinstance(error, (ValueError, OSError)):
        return 2, str(error)
    return 1, f"{type(error).__name__}: {error} (--debug shows where)"


def _command(commands, name: str, body: _Body, help: str) -> _Add:
    """A command, as the function that adds its arguments."""
    parser = commands.add_parser(name, help=help)
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(body=body)
    return parser.add_argument


def _add_triage(commands) -> None:
    add = _command(commands, "triage", _triage, "score a pool with one response per prompt and route every prompt")
    _add_pool_arguments(add)
    add("--label-column", help="column with the labels; only the probe set is read from it")
    add("--output", type=Path, required=True, help="folder for routes, queue and ledger")
    add(
        "--annotation-budget",
        type=_budget,
        default=0.293,
        help="share of the pool (0.293, 29.3%%) or number of labels (300) (default: %(default)s)",
    )
    add("--probe-size", type=int, help="labels spent on calibration (default: 32, or half the budget)")
    add(
        "--estimator",
        help="name of a score, such as total_entropy, pivot_entropy or length; an unknown name lists all "
        "(default: total_entropy)",
    )
    add(
        "--answer-format",
        default="math",
        help="how answers are found, read and compared: math, number, choice, choice:yes,no, text, or a format of "
        "yours as package.module:attribute (default: %(default)s)",
    )


def _triage(args: argparse.Namespace) -> None:
    from .offline import plan_triage, run_triage
    from .pool import load_pool
    from .report.run import plot_triage
    from .report.tables import print_triage
    from .routing.triage import TriageConfig
    from .scoring.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(args.model)
    plan = plan_triage(
        load_pool(args.dataset, args.split, args.config_name, args.limit),
        args.output,
        annotation_budget=args.annotation_budget,
        prompt_column=args.prompt_column,
        label_column=args.label_column,
        estimator=args.estimator,
        config=TriageConfig(probe_size=args.probe_size),
        answer_format=args.answer_format,
    )
    model = load_model(args.model, args.load_in_4bit)
    outcome = run_triage(plan, model, tokenizer, args.max_completion_length, args.batch_size)
    plot_triage(outcome, tokenizer, args.output)
    print_triage(outcome, args.output)


def _add_study(commands) -> None:
    add = _command(commands, "study", _study, "measure every score on a pool whose labels are all known")
    _add_pool_arguments(add)
    add("--label-column", required=True, help="column with the labels; all of them are read")
    add("--output", type=Path, required=True, help="folder; a second call goes on where one stopped")
    samples = partial(_count, least=0)
    add("--samples", type=samples, default=8, help="sampled responses a prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of samples and bootstrap (default: %(default)s)")


def _study(args: argparse.Namespace) -> None:
    from .pool import load_pool
    from .scoring.loading import load_model, load_tokenizer
    from .study.plots import plot_study
    from .study.run import check_study, run_study
    from .study.tables import print_study

    tokenizer = load_tokenizer(args.model)
    dataset = load_pool(args.dataset, args.split, args.config_name, args.limit)
    common: dict[str, Any] = {
        "dataset": dataset,
        "output_dir": args.output,
        "settings": {"model": args.model, "load_in_4bit": args.load_in_4bit},
        "prompt_column": args.prompt_column,
        "label_column": args.label_column,
        "max_completion_length": args.max_completion_length,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    check_study(**common)
    pool, reports = run_study(load_model(args.model, args.load_in_4bit), tokenizer, num_samples=args.samples, **common)
    print_study(reports, pool)
    plot_study(reports, pool, args.output, f"{Path(args.model).name} on {Path(args.dataset).name}")


def _add_pool_arguments(add: _Add) -> None:
    add("--model", required=True, help="folder or hub id of a causal language model")
    add("--dataset", required=True, help=".jsonl, .json, .csv or .parquet file, folder, or hub id")
    add("--split", default="train", help="split of a folder or hub dataset (default: %(default)s)")
    add("--config-name", help="configuration of a hub dataset, such as `main` of openai/gsm8k")
    add("--prompt-column", default="prompt", help="column with the prompts (default: %(default)s)")
    add("--limit", type=int, help="use the first prompts only")
    add("--max-completion-length", type=_count, default=384, help="tokens (default: %(default)s)")
    add("--batch-size", type=_count, default=32, help="responses at a time (default: %(default)s)")
    add("--load-in-4bit", action="store_true", help="quantize the model with bitsandbytes (nf4)")


def _add_annotate(commands) -> None:
    parser = commands.add_parser("annotate", help="hand out the queue, take answers in, see where it stands")
    actions = parser.add_subparsers(dest="action", required=True)
    for add_action in (_add_export, _add_import, _add_backup):
        add_action(actions)
    _on_run(actions, "status", _status, "queue, spend, throughput, and who answered")


def _add_export(actions) -> None:
    add = _on_run(actions, "export", _export, "write the queue, most valuable first, with room for the answers")
    add("--format", default="jsonl", choices=["jsonl", "csv", "parquet", "label-studio"])
    add("--output", type=Path, help="file (default: queue.jsonl and so on, beside the ledger)")
    add(
        "--with-suggestions",
        action="store_true",
        help="show the policy's own answer: saves typing, but biases people towards its errors",
    )
    add("--limit", type=int, help="number of queries (default: all)")


def _export(args: argparse.Namespace) -> None:
    from .labels.exchange import export_queue
    from .labels.exchange.exporting import SUFFIXES

    ledger = _open_ledger(args.run)
    path = args.output or ledger.path.with_name("queue" + SUFFIXES[args.format])
    count = export_queue(ledger, path, args.format, args.with_suggestions, args.limit)
    print(f"{count} queries in {path}. Fill in `answer` and run: pivottrace annotate import {args.run} {path}")


def _add_import(actions) -> None:
    add = _on_run(actions, "import", _import, "take answers in; a file may be partial, and may be imported again")
    add("file", type=Path, help=".jsonl, .csv, .parquet, or .json from Label Studio")
    add("--author", default=_user(), help="who answered, where the file does not say")
    add("--price", type=_price, default=0.0, help="price of an answer, where the file does not say")
    add("--replace", action="store_true", help="let these answers take the place of others")
    _add_format_of_ledger(add)


def _import(args: argparse.Namespace) -> None:
    from .labels.exchange import import_answers

    ledger = _open_ledger(args.run)
    report = import_answers(ledger, args.file, args.author, args.price, args.replace, answer_format=args.answer_format)
    print(
        f"{report.recorded} answers recorded, {report.duplicates} known before, {report.unanswered} not answered yet, "
        f"{report.rejected} rejected. {ledger.num_bought} of {ledger.budget} labels are bought."
    )
    if report.rejected_path is not None:
        reasons = ", ".join(f"{count} {kind}" for kind, count in report.reasons.items())
        print(f"Rejected: {reasons}. Each with its reason in {report.rejected_path}")


def _add_backup(actions) -> None:
    add = _on_run(actions, "backup", _backup, "copy the ledger, its log included, also while a run writes to it")
    add("file", type=Path, help="the copy; an older copy is replaced")


def _backup(args: argparse.Namespace) -> None:
    ledger = _open_ledger(args.run)
    count = ledger.backup(args.file)
    print(f"{args.file} holds the ledger of {args.run} with {count} labels, and was read back.")


def _status(args: argparse.Namespace) -> None:
    from .labels.status import annotation_status
    from .report.tables import print_status

    print_status(annotation_status(_open_ledger(args.run)))


def _add_desk(commands) -> None:
    add = _on_run(commands, "desk", _desk, "a local page for a person who answers, and the run's picture")
    add("--author", default=_user(), help="who answers (default: %(default)s)")
    add("--price", type=_price, default=0.0, help="price of an answer (default: %(default)s)")
    add(
        "--show-attempts",
        action="store_true",
        help="show the policy's attempt, its pivots marked: tells where it hesitated, but biases people",
    )
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    add("--no-token", action="store_true", help="let in everybody who reaches the address")
    _add_format_of_ledger(add)


def _desk(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the desk needs Gradio: pip install "pivottrace-trl[desk]"')
    ledger = _open_ledger(args.run)
    from .desk.server import serve  # takes seconds to import

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


def _on_run(commands, name: str, body: _Body, help: str) -> _Add:
    add = _command(commands, name, body, help)
    add("run", type=Path, help="folder of a run: `output_dir` of a training, or `--output` of a triage")
    return add


def _open_ledger(run: Path):
    from .files import PRIVATE_FOLDER
    from .labels.ledger import AnnotationLedger

    places = [run / "ledger.sqlite", run / PRIVATE_FOLDER / "ledger.sqlite"]
    for path in places:
        if path.is_file():
            return AnnotationLedger.open(path)
    raise FileNotFoundError(f"There is no ledger in {run}: neither {places[0]} nor {places[1]} exists.")


def _add_format_of_ledger(add: _Add) -> None:
    add(
        "--answer-format",
        help="that of the run, if it is one of yours (package.module:attribute): no file alone has code loaded",
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        return "unknown"


def _add_report(commands) -> None:
    add = _command(commands, "report", _report, "compare finished runs: one HTML page, its figures as PNG")
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or folders of such folders")
    add("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    add("--reference", default="full supervision", help='arm to compare the others with (default: "%(default)s")')


def _report(args: argparse.Namespace) -> None:
    from .report.page import write_report
    from .report.record import find_runs

    runs = find_runs(args.runs)
    print(f"{len(runs)} runs compared: {write_report(runs, args.output, args.reference)}")


def _add_demo(commands) -> None:
    add = _command(commands, "demo", _demo, "full supervision against PivotTrace on a tiny model, offline, on a CPU")
    add("--output", type=Path, default=Path("pivottrace-demo"), help="folder (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of pool, training and evaluation")
    add("--max-steps", type=_count, help="optimizer steps of each arm (default: see the demo's settings)")


def _demo(args: argparse.Namespace) -> None:
    from .files import check_writable

    check_writable(args.output)
    from .demo.run import run_demo  # takes seconds to import

    run_demo(args.output, seed=args.seed, max_steps=args.max_steps)


def _budget(text: str) -> float | int:
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a share such as 0.293 or 29.3% nor a number of labels such as 300"
        ) from None


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
    return int(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0.0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price of at least 0")
    return price
