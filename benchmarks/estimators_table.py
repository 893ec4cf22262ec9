"""Tables and plot of several studies. Reads folders that `pivottrace study` wrote.

python benchmarks/estimators_table.py --output docs/results/estimators --plot docs/images/estimators.png STUDY ...

Copies the scores of every prompt (`STUDY.parquet`) and prints Markdown: AUROC of every score on every pool, and what
the default gains over each of them, paired over prompts.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from pivottrace_trl.report.figures import BLUE, GREY, LIGHT, RED, save_figure
from pivottrace_trl.study.metrics import auroc, bootstrap, purchase


DEFAULT = "total_entropy"


def gain(default: np.ndarray, other: np.ndarray, is_wrong: np.ndarray) -> float:
    return auroc(default, is_wrong) - auroc(other, is_wrong)


def row_of(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tables = {}
    for study in args.studies:
        shutil.copyfile(study / "scores.parquet", args.output / f"{study.name}.parquet")
        shutil.copyfile(study / "study.json", args.output / f"{study.name}.json")
        columns = pq.read_table(study / "scores.parquet").to_pydict()
        tables[study.name] = {name: np.array(values) for name, values in columns.items() if name != "prompt_id"}
    names = {name: json.loads((args.output / f"{name}.json").read_text())["scores"] for name in tables}
    mean = {score: np.mean([scores[score]["auroc"]["value"] for scores in names.values() if score in scores])
            for score in dict.fromkeys(score for scores in names.values() for score in scores)}  # fmt: skip
    order = sorted(mean, key=lambda score: -mean[score])

    print("\nAUROC, 95% interval\n")
    print(row_of(["score", *tables]))
    print("|---" * (1 + len(tables)) + "|")
    for score in order:
        cells = []
        for scores in names.values():
            value = scores.get(score, {}).get("auroc")
            cells.append(f"{value['value']:.3f} ({value['low']:.2f}-{value['high']:.2f})" if value else "-")
        print(row_of([f"`{score}`", *cells]))

    print(f"\nAUROC of {DEFAULT} minus that of each other score, paired over prompts\n")
    print(row_of(["score", *tables]))
    print("|---" * (1 + len(tables)) + "|")
    gains: dict[str, dict] = {}
    for score in order:
        if score == DEFAULT:
            continue
        cells = []
        for name, table in tables.items():
            if score not in table:
                cells.append("-")
                continue
            interval = bootstrap(gain, table[DEFAULT], table[score], table["is_wrong"])
            gains.setdefault(name, {})[score] = vars(interval)
            cells.append(f"{interval.value:+.3f} ({interval.low:+.2f} to {interval.high:+.2f})")
        print(row_of([f"`{score}`", *cells]))
    (args.output / "gains.json").write_text(json.dumps(gains, indent=1) + "\n")

    for name, table in tables.items():
        votes = table.get("vote_is_right")
        print(f"\n{name}: {len(table['is_wrong'])} prompts, {table['is_wrong'].mean():.1%} wrong\n")
        print(row_of(["score", "less length", "Spearman", "tokens", "calibration error", "10%", "29.3%", "50%"]))
        print("|---" * 8 + "|")
        for score in order:
            if score not in table:
                continue
            report = names[name][score]
            less = "-" if score == "length" else f"{report['auroc_less_length']['value']:.3f}"
            rho = report["spearman"]["value"]
            cells = [f"`{score}`", less, "-" if rho is None else f"{rho:.2f}", f"{report['tokens_per_prompt']:.0f}"]
            cells.append(f"{report['calibration_error']:.2f}{' (flat)' if report['is_flat'] else ''}")
            for share in (0.10, 0.293, 0.50):
                bought = purchase(table[score], table["is_wrong"], votes, share)
                parts = [f"{bought.recall:.0%}", f"{bought.purity:.0%}"]
                parts += [] if np.isnan(bought.vote_accuracy) else [f"{bought.vote_accuracy:.0%}"]
                cells.append(" / ".join(parts))
            print(row_of(cells))

    figure = Figure(figsize=(3 + 2.1 * len(tables), 0.34 * len(order) + 1.3), layout="constrained")
    grid = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, scores) in zip(grid, names.items()):
        for place, score in enumerate(order[::-1]):
            if score not in scores:
                continue
            value = scores[score]["auroc"]
            color = RED if score == DEFAULT else BLUE
            axes.plot([value["low"], value["high"]], [place, place], color=LIGHT, linewidth=5)
            axes.plot(value["value"], place, "o", color=color, markersize=5)
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        axes.set_title(f"{name}\n{tables[name]['is_wrong'].mean():.0%} wrong", fontsize=9)
        axes.set_xlim(0.3, 1.0)
    grid[0].set_yticks(range(len(order)), order[::-1])
    figure.supxlabel("AUROC for wrong responses, with 95% interval", fontsize=9)
    save_figure(figure, args.plot)


if __name__ == "__main__":
    main()
