"""
Tables and pictures of the runs that `scripts/evidence.py` made, one of each a testbed.

    python benchmarks/evidence_tables.py docs/results/reproduction/tuning.jsonl --plot docs/images/tuning

A figure at the end of a run is the mean of its last two evaluations. Differences are paired over the seeds, with 95%
intervals by Student's t from two seeds on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pivottrace_trl.report.comparison import ArmSummary, SeedMean, mean_over_seeds, summarise
from pivottrace_trl.report.curves import arm_colors, draw_curves
from pivottrace_trl.report.figures import save_figure
from pivottrace_trl.report.record import Evaluation, Run


REFERENCE, CONTROL = "full", "random-labelled-only"


def read_runs(path: Path) -> dict[str, list[Run]]:
    """The runs of each testbed; another schedule of the learning rate is another testbed."""
    testbeds: dict[str, list[Run]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        is_constant = line["schedule"] == "constant_with_warmup"
        name = line["testbed"] if is_constant else f"{line['testbed']} {line['schedule']}"
        testbeds.setdefault(name, []).append(_as_run(line))
    return testbeds


def _as_run(line: dict[str, Any]) -> Run:
    steps, accuracy, tokens = map(np.array, zip(*line["curve"], strict=True))
    evaluation = Evaluation(steps, accuracy, tokens, np.full(len(steps), line["labels"]))
    return Run(
        folder=Path(),
        arm=line["arm"],
        seed=line["seed"],
        num_labels=line["labels"],
        pool_size=None,
        max_steps=int(steps[-1]),
        steps=int(steps[-1]),
        evaluations={"": evaluation},
        log_history=[],
        routes=[],
        scores=[],
        pass_rates=[],
        environment={},
        settings={},
        peak_gpu_memory_gb=None,
    )


def ends(summary: ArmSummary) -> dict[int, float]:
    """Accuracy at the end, by seed."""
    return dict(zip(summary.seeds, summary.curves[:, -2:].mean(axis=1), strict=True))


def difference(mine: ArmSummary, other: ArmSummary | None) -> SeedMean | None:
    """How far an arm ends above another, over the seeds that both have."""
    if other is None or mine.arm == other.arm:
        return None
    theirs = ends(other)
    differences = [end - theirs[seed] for seed, end in ends(mine).items() if seed in theirs]
    return mean_over_seeds(differences) if differences else None


def tokens_at(runs: Sequence[Run], arm: str, step: int | None) -> str:
    """Mean tokens of an arm at a step, in thousands."""
    if step is None:
        return "-"
    curves = [run.evaluations[""] for run in runs if run.arm == arm]
    return f"{np.mean([curve.tokens[curve.steps == step] for curve in curves]) / 1000:.0f}k"


def show(interval: SeedMean | None, form: str) -> str:
    """A mean and its interval, such as `+1.0% (-0.5% to +2.5%)`."""
    if interval is None:
        return "-"
    mean = form.format(interval.mean)
    return mean if np.isnan(interval.low) else f"{mean} ({form.format(interval.low)} to {form.format(interval.high)})"


def print_table(runs: Sequence[Run]) -> list[ArmSummary]:
    """Print the arms of a testbed, and return them."""
    summaries = summarise(runs, "", REFERENCE, CONTROL)
    of_arm = {summary.arm: summary for summary in summaries}
    columns = ["arm", "seeds", "labels", *(f"step {step}" for step in summaries[0].steps[1:]), "end", "against `full`"]
    columns += [f"against `{CONTROL}`", "`full`'s final accuracy at step", "in tokens", "tokens in all"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for summary in summaries:
        curve = [f"{accuracy:.3f}" for accuracy in summary.curves.mean(axis=0)[1:]]
        cells = [f"`{summary.arm}`", str(len(summary.seeds)), f"{summary.labels.mean:.0f}", *curve]
        cells += [show(mean_over_seeds(list(ends(summary).values())), "{:.1%}")]
        cells += [show(difference(summary, of_arm.get(other)), "{:+.1%}") for other in (REFERENCE, CONTROL)]
        cells += ["-" if summary.goal_step is None else str(summary.goal_step)]
        cells += [tokens_at(runs, summary.arm, summary.goal_step), f"{summary.tokens.mean / 1000:.0f}k"]
        print("| " + " | ".join(cells) + " |")
    return summaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, help="JSON Lines file, a line a run")
    parser.add_argument("--plot", type=Path, help="pictures PLOT-TESTBED.png")
    args = parser.parse_args()
    for testbed, runs in read_runs(args.summary).items():
        print(f"\n`{testbed}`\n")
        summaries = print_table(runs)
        if args.plot is not None:
            name = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in testbed)
            colors = arm_colors([summary.arm for summary in summaries])
            figure = draw_curves(summaries, runs, "", colors).whole()
            save_figure(figure, args.plot.with_name(f"{args.plot.name}-{name}.png"))


if __name__ == "__main__":
    main()
