"""The `pivottrace` command: parse, call, print."""

import argparse
import getpass
import importlib.util
import math
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


_RUN = "folder of a run: `output_dir` of a training, or `--output` of a triage"


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv (`list[str]`, *optional*): arguments; defaults to those of the process.

    Returns:
        `int`: exit status, 0 for success, 2 for an input that cannot be used, 1 for any other failure.
    """
    parser = _Parser(prog="pivottrace", description="Pick the prompts that deserve a label.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_triage(commands)
    _add_study(commands)
    _add_annotate(commands)
    _add_desk(commands)
    _add_report(commands)
    _add_demo(commands)
    args = parser.parse_args(argv)
    try:
        return args.run_command(args)
    except Exception as error:
        if args.debug:
            raise
        status, text = _explain(error)
        print(f"pivottrace {args.command}: {' '.join(text.split())}", file=sys.stderr)
        return status


def _explain(error: Exception) -> tuple[int, str]:
    """Exit status and text."""
    if isinstance(error, sqlite3.OperationalError):
        return (
            2,
            f"the ledger cannot be used ({error}): another program holds it, or the disk is full. Try again later.",
        )
    if isinstance(error, (ValueError, OSError)):
        return 2, str(error)
    return 1, f"{type(error).__name__}: {error} (--debug shows where)"


def _add_command(commands, name: str, run_command: Callable[[argparse.Namespace], int], help: str) -> _Parser:
    parser = commands.add_parser(name, help=help)
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(run_command=run_command)
    return parser


def _add_triage(commands) -> None:
    parser = _add_command(
        commands, "triage", _run_triage, help="score a pool with one response per prompt and route every prompt"
    )
    _add_pool_arguments(parser)
    parser.add_argument("--label-column", help="column with the labels; only the probe set is read from it")
    parser.add_argument("--output", type=Path, required=True, help="folder for routes, queue and ledger")
    parser.add_argument(
        "--annotation-budget",
        type=_budget,
        default=0.293,
        help="share of the pool (0.293, 29.3%%) or number of labels (300) (default: %(default)s)",
    )
    parser.add_argument("--probe-size", type=int, help="labels spent on calibration (default: 32, or half the budget)")
    parser.add_argument(
        "--estimator",
        help="name of a score, such as total_entropy, pivot_entropy or length; an unknown name lists all "
        "(default: total_entropy)",
    )
    parser.add_argument(
        "--answer-format",
        default="math",
        help="how answers are found, read and compared: math, number, choice, choice:yes,no, text, or a format of "
        "yours as package.module:attribute (default: %(default)s)",
    )


def _add_study(commands) -> None:
    parser = _add_command(
        commands, "study", _run_study, help="measure every score on a pool whose labels are all known"
    )
    _add_pool_arguments(parser)
    parser.add_argument("--label-column", required=True, help="column with the labels; all of them are read")
    parser.add_argument("--output", type=Path, required=True, help="folder; a second call goes on where one stopped")
    parser.add_argument(
        "--samples", type=_count_or_none, default=8, help="sampled responses a prompt (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of samples and bootstrap (default: %(default)s)")


def _add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub id of a causal language model")
    parser.add_argument("--dataset", required=True, help=".jsonl, .json, .csv or .parquet file, folder, or hub id")
    parser.add_argument("--split", default="train", help="split of a folder or hub dataset (default: %(default)s)")
    parser.add_argument("--config-name", help="configuration of a hub dataset, such as `main` of openai/gsm8k")
    parser.add_argument("--prompt-column", default="prompt", help="column with the prompts (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use the first prompts only")
    parser.add_argument("--max-completion-length", type=_count, default=384, help="tokens (default: %(default)s)")
    parser.add_argument("--batch-size", type=_count, default=32, help="responses at a time (default: %(default)s)")
    parser.add_argument("--load-in-4bit", action="store_true", help="quantize the model with bitsandbytes (nf4)")


def _add_annotate(commands) -> None:
    parser = commands.add_parser("annotate", help="hand out the queue, take answers in, see where it stands")
    actions = parser.add_subparsers(dest="action", required=True)
    export = _add_command(
        actions, "export", _run_export, help="write the queue, most valuable first, with room for the answers"
    )
    export.add_argument("run", type=Path, help=_RUN)
    export.add_argument("--format", default="jsonl", choices=["jsonl", "csv", "parquet", "label-studio"])
    export.add_argument("--output", type=Path, help="file (default: queue.jsonl and so on, beside the ledger)")
    export.add_argument(
        "--with-suggestions",
        action="store_true",
        help="show the policy's own answer: saves typing, but biases people towards its errors",
    )
    export.add_argument("--limit", type=int, help="number of queries (default: all)")
    take = _add_command(
        actions, "import", _run_import, help="take answers in; a file may be partial, and may be imported again"
    )
    take.add_argument("run", type=Path, help=_RUN)
    take.add_argument("file", type=Path, help=".jsonl, .csv, .parquet, or .json from Label Studio")
    take.add_argument("--author", default=_user(), help="who answered, where the file does not say")
    take.add_argument("--price", type=_price, default=0.0, help="price of an answer, where the file does not say")
    take.add_argument("--replace", action="store_true", help="let these answers take the place of others")
    _add_format_of_ledger(take)
    backup = _add_command(
        actions, "backup", _run_backup, help="copy the ledger, its log included, also while a run writes to it"
    )
    backup.add_argument("run", type=Path, help=_RUN)
    backup.add_argument("file", type=Path, help="the copy; an older copy is replaced")
    status = _add_command(actions, "status", _run_status, help="queue, spend, throughput, and who answered")
    status.add_argument("run", type=Path, help=_RUN)


def _add_desk(commands) -> None:
    parser = _add_command(
        commands, "desk", _run_desk, help="a local page for a person who answers, and the run's picture"
    )
    parser.add_argument("run", type=Path, help=_RUN)
    parser.add_argument("--author", default=_user(), help="who answers (default: %(default)s)")
    parser.add_argument("--price", type=_price, default=0.0, help="price of an answer (default: %(default)s)")
    parser.add_argument(
        "--show-attempts",
        action="store_true",
        help="show the policy's attempt, its pivots marked: tells where it hesitated, but biases people",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--no-token", action="store_true", help="let in everybody who reaches the address")
    _add_format_of_ledger(parser)


def _add_format_of_ledger(parser: _Parser) -> None:
    parser.add_argument(
        "--answer-format",
        help="that of the run, if it is one of yours (package.module:attribute): no file alone has code loaded",
    )


def _add_report(commands) -> None:
    parser = _add_command(
        commands, "report", _run_report, help="compare finished runs: one HTML page, its figures as PNG"
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or folders of such folders"
    )
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--reference", default="full supervision", help='arm to compare the others with (default: "%(default)s")'
    )


def _add_demo(commands) -> None:
    parser = _add_command(
        commands, "demo", _run_demo, help="full supervision against PivotTrace on a tiny model, offline, on a CPU"
    )
    parser.add_argument("--output", type=Path, default=Path("pivottrace-demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of pool, training and evaluation")
    parser.add_argument(
        "--max-steps", type=_count, help="optimizer steps of each arm (default: see the demo's settings)"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        return "unknown"


def _budget(text: str) -> float | int:
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a share such as 0.293 or 29.3% nor a number of labels such as 300"
        ) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0.0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price of at least 0")
    return price


def _load_tokenizer(args: argparse.Namespace):
    """The small files of the model: whether there is one is known before anything large is read."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(args.model)
        return AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--model {args.model} is neither a folder with a model and its tokenizer nor one of the hub: {error}"
        ) from error


def _load_model(args: argparse.Namespace):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict = {"dtype": "auto"}
    if args.load_in_4bit:
        import torch

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return AutoModelForCausalLM.from_pretrained(args.model, device_map="auto", **options)


def _run_triage(args: argparse.Namespace) -> int:
    from .offline import plan_triage, run_triage
    from .pool import load_pool
    from .report.run import plot_triage
    from .report.tables import print_triage
    from .routing.triage import TriageConfig

    tokenizer = _load_tokenizer(args)
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
    outcome = run_triage(plan, _load_model(args), tokenizer, args.max_completion_length, args.batch_size)
    plot_triage(outcome, tokenizer, args.output)
    print_triage(outcome, args.output)
    return 0


def _run_study(args: argparse.Namespace) -> int:
    from .pool import load_pool
    from .study.plots import plot_auroc, plot_reliability, plot_risk_coverage
    from .study.run import check_study, run_study
    from .study.tables import print_study

    tokenizer = _load_tokenizer(args)
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
    pool, reports = run_study(_load_model(args), tokenizer, num_samples=args.samples, **common)
    print_study(reports, pool)
    title = f"{Path(args.model).name} on {Path(args.dataset).name}"
    plot_auroc(reports, args.output / "auroc.png", title)
    plot_risk_coverage(reports, pool, args.output / "risk_coverage.png", title)
    plot_reliability(reports, pool, args.output / "reliability.png", title)
    return 0


def _open_ledger(run: Path):
    from .files import PRIVATE_FOLDER
    from .labels.ledger import AnnotationLedger

    places = [run / "ledger.sqlite", run / PRIVATE_FOLDER / "ledger.sqlite"]
    for path in places:
        if path.is_file():
            return AnnotationLedger.open(path)
    raise FileNotFoundError(f"There is no ledger in {run}: neither {places[0]} nor {places[1]} exists.")


def _run_export(args: argparse.Namespace) -> int:
    from .labels.exchange import export_queue
    from .labels.exchange.tables import SUFFIXES

    ledger = _open_ledger(args.run)
    path = args.output or ledger.path.with_name("queue" + SUFFIXES[args.format])
    count = export_queue(ledger, path, args.format, args.with_suggestions, args.limit)
    print(f"{count} queries in {path}. Fill in `answer` and run: pivottrace annotate import {args.run} {path}")
    return 0


def _run_import(args: argparse.Namespace) -> int:
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
    return 0


def _run_backup(args: argparse.Namespace) -> int:
    ledger = _open_ledger(args.run)
    count = ledger.backup(args.file)
    print(f"{args.file} holds the ledger of {args.run} with {count} labels, and was read back.")
    return 0


def _run_status(args: argparse.Namespace) -> int:
    from .labels.exchange import annotation_status
    from .report.tables import print_status

    print_status(annotation_status(_open_ledger(args.run)))
    return 0


def _run_desk(args: argparse.Namespace) -> int:
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
    return 0


def _run_report(args: argparse.Namespace) -> int:
    from .files import check_writable
    from .report.page import write_report
    from .report.record import find_runs

    runs = find_runs(args.runs)
    check_writable(args.output)
    print(f"{len(runs)} runs compared: {write_report(runs, args.output, args.reference)}")
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from .files import check_writable

    check_writable(args.output)
    from .demo.run import run_demo  # takes seconds to import

    run_demo(args.output, seed=args.seed, max_steps=args.max_steps)
    return 0
