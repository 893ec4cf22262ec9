"""
Table of several demos. Reads what `pivottrace demo --seed N --output DIR/N` wrote.

    python benchmarks/demo_seeds.py --output docs/results/demo_seeds.json DIR/0 DIR/1 ...

Prints one table as Markdown, writes one JSON, and draws mean curves over the seeds with `--plot`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pivottrace_trl.demo.arm import Arm, first_step_at
from pivottrace_trl.report.figures import BLUE, GREY, save_figure


def plot(runs: list[list[Arm]], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, color in enumerate((GREY, BLUE)):
        arms = [arms[index] for arms in runs]
        curves = np.array([arm.accuracies for arm in arms])
        mean, spread = curves.mean(axis=0), curves.std(axis=0, ddof=1) / len(curves) ** 0.5
        labels = sorted({arm.labels for arm in arms})
        axes.plot(arms[0].steps, mean, color=color, marker="o", label=f"{arms[0].name}, {labels[-1]} labels")
        axes.fill_between(arms[0].steps, mean - spread, mean + spread, color=color, alpha=0.25, linewidth=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out accuracy")
    axes.set_title(f"mean of {len(runs)} seeds, band: standard error", fontsize=9, loc="left")
    axes.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    results = [json.loads((run / "results.json").read_text()) for run in args.runs]
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    runs = [[Arm(**arm) for arm in result["arms"]] for result in results]
    if args.plot:
        plot(runs, args.plot)

    print("| seed | before | full supervision | PivotTrace | difference | labels | full's final accuracy at step |")
    print("|---|---|---|---|---|---|---|")
    differences = []
    for result, (full, pivot) in zip(results, runs, strict=True):
        step = first_step_at(pivot, full.accuracies[-1])
        differences.append(pivot.accuracies[-1] - full.accuracies[-1])
        print(
            f"| {result['seed']} | {full.accuracies[0]:.1%} | {full.accuracies[-1]:.1%} | {pivot.accuracies[-1]:.1%} "
            f"| {differences[-1]:+.1%} | {pivot.labels} of {full.labels} | "
            f"{'not reached' if step is None else f'{step} of {full.steps[-1]}'} |"
        )
    error = np.std(differences, ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    print(f"\nMean difference {np.mean(differences):+.1%}, standard error {error:.1%} over {len(differences)} seeds.")


if __name__ == "__main__":
    main()
