"""Learning curves of the demo."""

from pathlib import Path

from matplotlib.figure import Figure

from ..report.figures import BLUE, GREY, save_figure
from .arm import Arm


_COLORS = {"full supervision": GREY, "PivotTrace": BLUE}


def plot_arms(arms: list[Arm], path: Path) -> None:
    """Draw held-out accuracy against optimizer steps, and the labels used."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    curves, labels = figure.subplots(1, 2, width_ratios=(3, 1))
    for arm in arms:
        curves.plot(arm.steps, arm.accuracies, marker="o", markersize=3.5, color=_COLORS[arm.name], label=arm.name)
        labels.bar(arm.name, arm.labels, color=_COLORS[arm.name])
        labels.text(arm.name, arm.labels, str(arm.labels), ha="center", va="bottom")
    curves.axhline(arms[0].accuracies[-1], color=_COLORS[arms[0].name], linestyle=":", linewidth=1)
    curves.set_xlabel("optimizer step")
    curves.set_ylabel("held-out accuracy")
    curves.legend(frameon=False)
    labels.set_ylabel("labels used")
    labels.tick_params(axis="x", rotation=20)
    save_figure(figure, path)
