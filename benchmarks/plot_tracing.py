"""
Time and memory of tracing next to a plain forward pass. Reads what `tracing.py` wrote.

    python benchmarks/plot_tracing.py --output docs/images/tracing_cost.png docs/results/performance-tracing-*-cpu.json
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from pivottrace_trl.report.figures import BLUE, GREY, RED, save_figure


LINES = {
    "plain": (GREY, "plain forward"),
    "traced": (BLUE, "forward and trace"),
    "maps": (RED, "maps"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    figure = Figure(figsize=(9, 3.2 * len(args.results)), layout="constrained")
    axes = figure.subplots(len(args.results), 2, squeeze=False)
    for (time_axes, memory_axes), path in zip(axes, args.results, strict=True):
        record = json.loads(path.read_text())
        for unit, one in (("s", time_axes), ("MiB", memory_axes)):
            for name, (color, label) in LINES.items():
                rows = [row for row in record["rows"] if f"{name} {unit}" in row]
                values = [row[f"{name} {unit}"] for row in rows]
                one.plot([row["tokens"] for row in rows], values, color=color, marker="o", markersize=4, label=label)
            one.set_xscale("log", base=2)
            one.set_yscale("log")
            one.set_xticks([row["tokens"] for row in record["rows"]], [row["tokens"] for row in record["rows"]])
            one.set_xlabel("tokens")
        time_axes.set_ylabel("seconds")
        memory_axes.set_ylabel("peak MiB beyond the weights")
        time_axes.set_title(record["title"], fontsize=9, loc="left")
        time_axes.legend(frameon=False, fontsize=8)
    save_figure(figure, args.output)


if __name__ == "__main__":
    main()
