"""Plots of a study as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..report.figures import BLUE, GREY, LIGHT, RED, save_figure
from ..routing.triage import rank_pool
from .measure import LabelledPool, ScoreReport
from .metrics import risk_coverage


# Largest number of lines in a plot. The table and the bars show all scores.
_NUM_LINES = 6


def plot_study(reports: Mapping[str, ScoreReport], pool: LabelledPool, output_dir: Path, title: str = "") -> None:
    """Draw the quality of every score, best first. The title names the model and the pool."""
    plot_auroc(reports, output_dir / "auroc.png", title)
    plot_risk_coverage(reports, pool, output_dir / "risk_coverage.png", title)
    plot_reliability(reports, pool, output_dir / "reliability.png", title)


def plot_auroc(reports: Mapping[str, ScoreReport], path: Path, title: str = "") -> None:
    """Draw the AUROC of every score with its interval, best first."""
    figure = Figure(figsize=(7, 0.32 * len(reports) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(reports)[::-1]
    for place, name in enumerate(names):
        interval = reports[name].auroc
        axes.plot([interval.low, interval.high], [place, place], color=LIGHT, linewidth=6, solid_capstyle="round")
        axes.plot(interval.value, place, "o", color=BLUE)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("AUROC for wrong responses, with 95% interval")
    axes.set_title(title, fontsize=10, loc="left")
    save_figure(figure, path)


def plot_risk_coverage(reports: Mapping[str, ScoreReport], pool: LabelledPool, path: Path, title: str = "") -> None:
    """Draw the share of wrong responses among the least uncertain ones, for the best scores."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    coverage = np.arange(1, len(pool.is_wrong) + 1) / len(pool.is_wrong)
    # Below a twentieth of the pool, the share is that of only a few responses.
    shown = coverage >= 0.05
    for name in _chosen(reports):
        axes.plot(coverage[shown], risk_coverage(reports[name].scores, pool.is_wrong)[shown], label=name)
    axes.axhline(pool.is_wrong.mean(), color=GREY, linewidth=1, linestyle=":", label="all")
    axes.set_xlabel("share of the pool, least uncertain first")
    axes.set_ylabel("wrong responses in it")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_reliability(reports: Mapping[str, ScoreReport], pool: LabelledPool, path: Path, title: str = "") -> None:
    """
    Draw, for the best scores, the success along the ranking that the probe set predicts, with its band, and the
    observed success.
    """
    names = _chosen(reports)
    figure = Figure(figsize=(9, 2.6 * ((len(names) + 2) // 3)), layout="constrained")
    grid = figure.subplots((len(names) + 2) // 3, 3, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        report = reports[name]
        right = (~pool.is_wrong)[rank_pool(report.scores)]
        place = np.arange(len(right)) / len(right)
        calibration = report.calibration
        axes.fill_between(place, calibration.low, calibration.high, color=LIGHT, linewidth=0)
        axes.plot(place, calibration.curve, color=BLUE, label="predicted from the probes")
        stretches = np.array_split(np.arange(len(right)), min(10, len(right)))
        centres = [place[stretch].mean() for stretch in stretches]
        axes.plot(centres, [right[stretch].mean() for stretch in stretches], "o", color=RED, markersize=4,
                  label="observed")  # fmt: skip
        axes.set_title(f"{name}, error {report.calibration_error:.2f}", fontsize=9)
        axes.set_ylim(-0.02, 1.02)
    grid[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("place in the ranking, least uncertain first", fontsize=9)
    figure.supylabel("success", fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save_figure(figure, path)


def _chosen(reports: Mapping[str, ScoreReport]) -> list[str]:
    return list(reports)[:_NUM_LINES]
