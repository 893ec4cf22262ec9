"""The `pivottrace` command: parse, call, print."""

import argparse
import getpass
import importlib.util
import sys
from pathlib import Path


_RUN = "folder of a run: `output_dir` of a training, or `--output` of a triage"


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv (`list[str]`, *optional*): arguments; defaults to those of the process.

    Returns:
        `int`: exit status, 0 for success, 2 for an input that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="pivottrace", description="Pick the prompts that deserve a label.")
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
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"pivottrace {args.command}: {error}", file=sys.stderr)
        return 2


def _add_triage(commands) -> None:
    parser = commands.add_parser("triage", help="score a pool with one response per prompt and route every prompt")
    _add_pool_arguments(parser)
    parser.add_argument("--label-column", help="column with the labels; only the probe set is read from it")
    parser.add_argument("--output", type=Path, required=True, help="folder for routes, queue and ledger")
    parser.add_argument(
        "--annotation-budget",
        type=_number,
        default=0.293,
        help="share of the pool (0.293) or number of labels (300) (default: %(default)s)",
    )
    parser.add_argument("--probe-size", type=int, help="labels spent on calibration (default: 32, or half the budget)")
    parser.add_argument(
        "--estimator",
        help="name of a score, such as total_entropy, pivot_entropy or length; an unknown name lists all "
        "(default: total_entropy)",
    )
    parser.set_defaults(run_command=_run_triage)


def _add_study(commands) -> None:
    parser = commands.add_parser("study", help="measure every score on a pool whose labels are all known")
    _add_pool_arguments(parser)
    parser.add_argument("--label-column", required=True, help="column with the labels; all of them are read")
    parser.add_argument("--output", type=Path, required=True, help="folder; a second call goes on where one stopped")
    parser.add_argument("--samples", type=int, default=8, help="sampled responses a prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of samples and bootstrap (default: %(default)s)")
    parser.set_defaults(run_command=_run_study)


def _add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub id of a causal language model")
    parser.add_argument("--dataset", required=True, help=".jsonl, .json, .csv or .parquet file, folder, or hub id")
    parser.add_argument("--split", default="train", help="split of a folder or hub dataset (default: %(default)s)")
    parser.add_argument("--config-name", help="configuration of a hub dataset, such as `main` of openai/gsm8k")
    parser.add_argument("--prompt-column", default="prompt", help="column with the prompts (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use the first prompts only")
    parser.add_argument("--max-completion-length", type=int, default=384, help="tokens (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="responses at a time (default: %(default)s)")
    parser.add_argument("--load-in-4bit", action="store_true", help="quantize the model with bitsandbytes (nf4)")


def _add_annotate(commands) -> None:
    parser = commands.add_parser("annotate", help="hand out the queue, take answers in, see where it stands")
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="write the queue, most valuable first, with room for the answers")
    export.add_argument("run", type=Path, help=_RUN)
    export.add_argument("--format", default="jsonl", choices=["jsonl", "csv", "parquet", "label-studio"])
    export.add_argument("--output", type=Path, help="file (default: queue.jsonl and so on, beside the ledger)")
    export.add_argument(
        "--with-suggestions",
        action="store_true",
        help="show the policy's own answer: saves typing, but biases people towards its errors",
    )
    export.add_argument("--limit", type=int, help="number of queries (default: all)")
    export.set_defaults(run_command=_run_export)
    take = actions.add_parser("import", help="take answers in; a file may be partial, and may be imported again")
    take.add_argument("run", type=Path, help=_RUN)
    take.add_argument("file", type=Path, help=".jsonl, .csv, .parquet, or .json from Label Studio")
    take.add_argument("--author", default=_user(), help="who answered, where the file does not say")
    take.add_argument("--price", type=float, default=0.0, help="price of an answer, where the file does not say")
    take.add_argument("--replace", action="store_true", help="let these answers take the place of others")
    take.set_defaults(run_command=_run_import)
    status = actions.add_parser("status", help="queue, spend, throughput, and who answered")
    status.add_argument("run", type=Path, help=_RUN)
    status.set_defaults(run_command=_run_status)


def _add_desk(commands) -> None:
    parser = commands.add_parser("desk", help="a local page for a person who answers, and the run's picture")
    parser.add_argument("run", type=Path, help=_RUN)
    parser.add_argument("--author", default=_user(), help="who answers (default: %(default)s)")
    parser.add_argument("--price", type=float, default=0.0, help="price of an answer (default: %(default)s)")
    parser.add_argument(
        "--show-attempts",
        action="store_true",
        help="show the policy's attempt, its pivots marked: tells where it hesitated, but biases people",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--no-token", action="store_true", help="let in everybody who reaches the address")
    parser.set_defaults(run_command=_run_desk)


def _add_report(commands) -> None:
    parser = commands.add_parser("report", help="compare finished runs: one HTML page, its figures as PNG")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or folders of such folders"
    )
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--reference", default="full supervision", help='arm to compare the others with (default: "%(default)s")'
    )
    parser.set_defaults(run_command=_run_report)


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="full supervision against PivotTrace on a tiny model, offline, on a CPU")
    parser.add_argument("--output", type=Path, default=Path("pivottrace-demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of pool, training and evaluation")
    parser.add_argument("--max-steps", type=int, help="optimizer steps of each arm (default: see the demo's settings)")
    parser.set_defaults(run_command=_run_demo)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        return "unknown"


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _load_model(args: argparse.Namespace):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options: dict = {"dtype": "auto"}
    if args.load_in_4bit:
        import torch

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    return AutoModelForCausalLM.from_pretrained(args.model, device_map="auto", **options), tokenizer


def _run_triage(args: argparse.Namespace) -> int:
    from .loading import load_pool
    from .offline import triage_pool
    from .report.triage import plot_triage, print_triage
    from .routing import TriageConfig

    dataset = load_pool(args.dataset, args.split, args.config_name, args.limit)
    model, tokenizer = _load_model(args)
    outcome = triage_pool(
        model,
        tokenizer,
        dataset,
        args.output,
        annotation_budget=args.annotation_budget,
        prompt_column=args.prompt_column,
        label_column=args.label_column,
        estimator=args.estimator,
        config=TriageConfig(probe_size=args.probe_size),
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
    )
    plot_triage(outcome, tokenizer, args.output)
    print_triage(outcome, args.output)
    return 0


def _run_study(args: argparse.Namespace) -> int:
    from .loading import load_pool
    from .study.plots import plot_auroc, plot_reliability, plot_risk_coverage
    from .study.run import run_study
    from .study.tables import print_study

    dataset = load_pool(args.dataset, args.split, args.config_name, args.limit)
    model, tokenizer = _load_model(args)
    pool, reports = run_study(
        model,
        tokenizer,
        dataset,
        args.output,
        {"model": args.model, "load_in_4bit": args.load_in_4bit},
        prompt_column=args.prompt_column,
        label_column=args.label_column,
        num_samples=args.samples,
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
        seed=args.seed,
    )
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
    from .exchange import export_queue
    from .exchange.tables import SUFFIXES

    ledger = _open_ledger(args.run)
    path = args.output or ledger.path.with_name("queue" + SUFFIXES[args.format])
    count = export_queue(ledger, path, args.format, args.with_suggestions, args.limit)
    print(f"{count} queries in {path}. Fill in `answer` and run: pivottrace annotate import {args.run} {path}")
    return 0


def _run_import(args: argparse.Namespace) -> int:
    from .exchange import import_answers

    ledger = _open_ledger(args.run)
    report = import_answers(ledger, args.file, args.author, args.price, args.replace)
    print(
        f"{report.recorded} answers recorded, {report.duplicates} known before, {report.unanswered} not answered yet, "
        f"{report.rejected} rejected. {ledger.num_bought} of {ledger.budget} labels are bought."
    )
    if report.rejected_path is not None:
        reasons = ", ".join(f"{count} {kind}" for kind, count in report.reasons.items())
        print(f"Rejected: {reasons}. Each with its reason in {report.rejected_path}")
    return 0


def _run_status(args: argparse.Namespace) -> int:
    from .exchange import annotation_status
    from .report.annotation import print_status

    print_status(annotation_status(_open_ledger(args.run)))
    return 0


def _run_desk(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the desk needs Gradio: pip install "pivottrace-trl[desk]"')
    from .desk.server import serve

    serve(
        _open_ledger(args.run),
        args.author,
        host=args.host,
        port=args.port,
        show_attempts=args.show_attempts,
        price=args.price,
        has_token=not args.no_token,
        announce=lambda text: print(text, flush=True),
    )
    return 0


def _run_report(args: argparse.Namespace) -> int:
    from .report.page import write_report
    from .report.runs import find_runs

    runs = find_runs(args.runs)
    print(f"{len(runs)} runs compared: {write_report(runs, args.output, args.reference)}")
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from .demo.run import run_demo

    run_demo(args.output, seed=args.seed, max_steps=args.max_steps)
    return 0
