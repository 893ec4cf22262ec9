"""The `pivottrace` command: parse, call, print."""

import argparse
import os
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from .annotate import add_annotate, add_desk
from .arguments import Add, add_command, add_debug, read_count, say_next
from .doctor import add_doctor
from .failures import explain


_SURVEY_KEPT = "What was answered and traced is in {output}; the same command goes on from there."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="pivottrace",
        description="Pick the prompts that deserve a label.",
        epilog="start here:\n  pivottrace demo             # two minutes, offline, on a CPU\n"
        "  pivottrace triage --help   # your own pool and model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pivottrace-trl {metadata.version('pivottrace-trl')}")
    add_debug(parser, default=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_train, _add_triage, _add_study, add_annotate, add_desk, _add_report, _add_demo, add_doctor):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Run a command; returns 0 for success, 2 for an input that cannot be used, 130 if it was interrupted, 1 for any
    other failure.
    """
    argv = sys.argv[1:] if argv is None else argv
    # What follows `train` is for TRL's parser, which takes seconds to load.
    is_train = [word for word in argv if not word.startswith("-")][:1] == ["train"]
    end = argv.index("train") + 1 if is_train else len(argv)
    args = make_parser().parse_args(argv[:end], argparse.Namespace(options=argv[end:]))
    try:
        args.body(args)
        sys.stdout.flush()  # here, where a reader that has gone away is known for what it is
        return 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            raise
        status, text = explain(error, args)
        print(f"{args.prog}: {text}", file=sys.stderr)
        return status


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train", help="train as `trl grpo` does, from YAML and flags, on labels that are picked", add_help=False
    )
    kept = (
        "What was scored and bought is in `output_dir`, where the same command finds it; with "
        "`resume_from_checkpoint` it goes on from a checkpoint."
    )
    parser.set_defaults(body=_train, kept=kept, flags={}, prog=parser.prog)


def _train(args: argparse.Namespace) -> None:
    from .train import train

    train(args)


def _add_triage(commands) -> None:
    add = add_command(
        commands,
        "triage",
        _triage,
        "score a pool with one response per prompt and route every prompt",
        examples="pivottrace triage --model Qwen/Qwen2.5-0.5B-Instruct --dataset pool.jsonl --output run/_pivottrace\n"
        "pivottrace triage --model MODEL --dataset openai/gsm8k --config-name main --prompt-column question "
        "--limit 500 --output run\n"
        "pivottrace triage --model MODEL --dataset pool.jsonl --label-column answer --annotator queue "
        "--annotation-budget 300 --output run",
        kept=_SURVEY_KEPT,
    )
    _add_pool_arguments(add)
    add("--streaming", action="store_true", help="read no more of the dataset than the first --limit prompts")
    add(
        "--id-column",
        help="column of texts or whole numbers that tell the prompts apart (default: questions do)",
    )
    add("--question-column", help="column with the bare questions, where --prompt-column has more than these")
    add("--instruction", help="what training adds to every question, after a line break; people do not see it")
    add("--system-prompt", help="system message of every prompt in training")
    add("--label-column", help="column with the labels; only the probe set is read from it")
    add(
        "--annotator",
        choices=["queue"],
        help="ask people for what the label column lacks; the labels that it holds are yours, and free",
    )
    add("--output", type=Path, required=True, help="folder for routes, queue and ledger")
    add(
        "--annotation-budget",
        default="0.293",
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
    from ..files import PRIVATE_FOLDER
    from ..offline import plan_triage, run_triage
    from ..pool import Questions, load_pool
    from ..report.run import plot_triage
    from ..report.tables import print_triage
    from ..routing.triage import TriageConfig
    from ..scoring.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(args.model)
    plan = plan_triage(
        load_pool(args.dataset, args.split, args.config_name, args.limit, args.streaming),
        args.output,
        Questions(args.prompt_column, args.id_column, args.question_column, args.instruction),
        annotation_budget=args.annotation_budget,
        label_column=args.label_column,
        estimator=args.estimator,
        config=TriageConfig(probe_size=args.probe_size),
        answer_format=args.answer_format,
        system_prompt=args.system_prompt,
        annotator=args.annotator,
    )
    model = load_model(args.model, args.load_in_4bit)
    outcome = run_triage(plan, model, tokenizer, args.max_completion_length, args.batch_size)
    plot_triage(outcome, tokenizer, args.output)
    print_triage(outcome, args.output)
    steps: list[tuple[str, list]] = []
    if plan.ledger.num_open:
        steps.append(("to answer in the browser", ["desk", args.output]))
        steps.append(("to answer in a table", ["annotate", "export", args.output, "--format", "csv"]))
    if args.output.name == PRIVATE_FOLDER:  # where a training takes over what a triage found
        words = ["train", "--output_dir", args.output.parent, "--config", "grpo.yaml"]
        steps.append(("to train on these routes, with your own file of settings", words))
    say_next(*steps)


def _add_study(commands) -> None:
    add = add_command(
        commands,
        "study",
        _study,
        "measure every score on a pool whose labels are all known",
        examples="pivottrace study --model Qwen/Qwen2.5-0.5B-Instruct --dataset pool.jsonl --label-column answer "
        "--output study\n"
        "pivottrace study --model MODEL --dataset openai/gsm8k --config-name main --prompt-column question "
        "--label-column answer --limit 200 --samples 4 --output study",
        kept=_SURVEY_KEPT,
    )
    _add_pool_arguments(add)
    add("--label-column", required=True, help="column with the labels; all of them are read")
    add("--output", type=Path, required=True, help="folder; a second call goes on where one stopped")
    samples = partial(read_count, least=0)
    add("--samples", type=samples, default=8, help="sampled responses a prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of samples and bootstrap (default: %(default)s)")


def _study(args: argparse.Namespace) -> None:
    from ..pool import load_pool
    from ..scoring.loading import load_model, load_tokenizer
    from ..study.plots import plot_study
    from ..study.run import check_study, run_study
    from ..study.tables import print_study

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
    names = ("model", "dataset", "config_name", "split", "prompt_column", "label_column", "limit")
    given = [(args.flags[name], value) for name in names if (value := getattr(args, name)) is not None]
    words = ["triage", *(word for option in given for word in option), "--estimator", next(iter(reports))]
    say_next(("to route this pool by the score that ranks it best", [*words, "--output", "run/_pivottrace"]))


def _add_pool_arguments(add: Add) -> None:
    add("--model", required=True, help="folder or hub id of a causal language model")
    add("--dataset", required=True, help=".jsonl, .json, .csv or .parquet file, folder, or hub id")
    add("--split", default="train", help="split of a folder or hub dataset (default: %(default)s)")
    add("--config-name", help="configuration of a hub dataset, such as `main` of openai/gsm8k")
    add("--prompt-column", default="prompt", help="column with the prompts (default: %(default)s)")
    add("--limit", type=int, help="use the first prompts only")
    add("--max-completion-length", type=read_count, default=384, help="tokens (default: %(default)s)")
    add("--batch-size", type=read_count, default=32, help="responses at a time (default: %(default)s)")
    add("--load-in-4bit", action="store_true", help="quantize the model with bitsandbytes (nf4)")


def _add_report(commands) -> None:
    add = add_command(
        commands,
        "report",
        _report,
        "show finished runs on one HTML page, its figures as PNG beside it",
        examples="pivottrace report pivottrace-demo\n"
        "pivottrace report runs/full-0 runs/ours-0 runs/ours-1 --output report\n"
        'pivottrace report runs --reference "random labels"',
    )
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or folders of such folders")
    add("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    add("--reference", default="full supervision", help='arm to compare the others with (default: "%(default)s")')


def _report(args: argparse.Namespace) -> None:
    from ..report.page import write_report
    from ..report.record import find_runs

    runs = find_runs(args.runs)
    page = write_report(runs, args.output, args.reference)
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''} shown in {page}: open it in a browser.")


def _add_demo(commands) -> None:
    add = add_command(
        commands,
        "demo",
        _demo,
        "full supervision against PivotTrace on a tiny model, offline, on a CPU",
        examples="pivottrace demo\npivottrace demo --seed 3 --output demo-3",
    )
    add("--output", type=Path, default=Path("pivottrace-demo"), help="folder (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of pool, training and evaluation")
    add("--max-steps", type=read_count, help="optimizer steps of each arm (default: see the demo's settings)")


def _demo(args: argparse.Namespace) -> None:
    from ..files import check_writable

    check_writable(args.output)
    from ..demo.run import run_demo  # takes seconds to import

    run_demo(args.output, seed=args.seed, max_steps=args.max_steps)
    say_next(("to see both arms on one page", ["report", args.output, "--output", args.output / "report"]))
