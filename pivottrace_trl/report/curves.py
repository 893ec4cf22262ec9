"""Figures that compare arms."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..routing.calibration import calibrate
from ..routing.triage import Route, rank_pool
from .comparison import ArmSummary
from .figures import ROUTE_COLORS
from .record import Run


# The reference in grey, then colours that people who see few colours can tell apart.
_PALETTE = (
    "#59636e", "#2f6fb2", "#f2a541", "#c8453b", "#3a9b7a", "#8a5fbf", "#d67fae", "#8c6d46", "#4fb6d6", "#a3b542",
    "#1f3a5f", "#e0723a", "#6b8f71", "#b2477c",
)  # fmt: skip
_MARKERS = "osD^vPX*<>hpd8"


def arm_colors(arms: Sequence[str]) -> dict[str, str]:
    """One colour for each arm, in their order; the first is grey."""
    return {arm: _PALETTE[place % len(_PALETTE)] for place, arm in enumerate(arms)}


def draw_curves(summaries: Sequence[ArmSummary], runs: Sequence[Run], name: str, colors: dict[str, str]) -> Figure:
    """
    Draw accuracy against optimizer steps, tokens and labels; bands and bars are one standard error over the seeds. The
    first arm is the reference.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    by_steps, by_tokens, by_labels = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 2.2))
    for place, summary in enumerate(summaries):
        style = {"color": colors[summary.arm], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 4}
        mean, error = summary.curves.mean(0), _standard_error(summary.curves)
        mine = [run for run in runs if run.arm == summary.arm and name in run.evaluations]
        is_common = [np.isin(run.evaluations[name].steps, summary.steps) for run in mine]
        tokens = np.mean([run.evaluations[name].tokens[kept] for run, kept in zip(mine, is_common, strict=True)], 0)
        by_steps.plot(summary.steps, mean, label=summary.arm, linewidth=1.6, **style)
        by_steps.fill_between(summary.steps, mean - error, mean + error, color=style["color"], alpha=0.13, linewidth=0)
        by_tokens.plot(tokens / 1e3, mean, linewidth=1.6, **style)
        by_tokens.fill_between(tokens / 1e3, mean - error, mean + error, color=style["color"], alpha=0.13, linewidth=0)
        by_labels.errorbar(summary.labels.mean, mean[-1], yerr=error[-1], capsize=3, **{**style, "markersize": 7})
    if summaries:
        for axes in (by_steps, by_tokens, by_labels):
            goal = summaries[0].curves[:, -1].mean()
            axes.axhline(goal, color=colors[summaries[0].arm], linestyle=":", linewidth=1)
    by_steps.set_xlabel("optimizer step")
    by_steps.set_ylabel(f"accuracy{f' on {name}' if name else ''}")
    by_tokens.set_xlabel("thousand tokens of prompts and rollouts, scoring included")
    by_labels.set_xlabel("labels bought, at the end")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_labels(summaries: Sequence[ArmSummary], colors: dict[str, str]) -> Figure:
    """Draw the labels that each arm bought (mean over the seeds)."""
    figure = Figure(figsize=(7, 0.8 + 0.34 * len(summaries)), layout="constrained")
    axes = figure.add_subplot()
    for place, summary in enumerate(summaries):
        axes.barh(place, summary.labels.mean, color=colors[summary.arm])
        axes.text(summary.labels.mean, place, f" {summary.labels.mean:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(summaries)), [summary.arm for summary in summaries])
    axes.invert_yaxis()
    axes.set_xlabel("labels")
    return figure


def draw_pseudo_labels(runs: Sequence[Run], colors: dict[str, str]) -> Figure | None:
    """Draw over the steps how often votes equal a known label, and what the collapse monitor compares."""
    panels = {
        "pivottrace/pseudo_label_accuracy": "votes that equal the label\n(annotated prompts)",
        "pivottrace/weak_reward": "reward on pseudo-labels",
        "pivottrace/annotated_accuracy": "accuracy on annotated prompts",
    }
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    shown = set()
    for axes, (metric, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for arm, color in colors.items():
            logged = [run.logged(metric) for run in runs if run.arm == arm]
            logged = [(steps, values) for steps, values in logged if len(steps)]
            if not logged:
                continue
            steps, values = (np.concatenate(arrays) for arrays in zip(*logged, strict=True))
            # A step holds few groups: twelve stretches of the run are averaged, over all seeds.
            edges = np.linspace(0, steps.max(), min(12, len(np.unique(steps))) + 1)
            stretch = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, len(edges) - 2)
            filled = np.unique(stretch)
            means = [values[stretch == part].mean() for part in filled]
            label = arm if arm not in shown else None
            axes.plot(
                (edges[filled] + edges[filled + 1]) / 2, means, color=color, marker="o", markersize=3, label=label
            )
            shown.add(arm)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("optimizer step")
    if not shown:
        return None
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_calibration(runs: Sequence[Run], colors: dict[str, str]) -> Figure | None:
    """Draw how often the policy is right along each ranking, by the labels, at the first and the last routing."""
    curves: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    places = np.linspace(0, 1, 101)
    for run in runs:
        for when in (0, -1):
            if run.routes and np.isfinite(run.pass_rates[when]).any():
                curve = calibrate(rank_pool(run.scores[when]), run.pass_rates[when]).curve
                curves.setdefault(run.arm, ([], []))[when].append(
                    np.interp(places, np.linspace(0, 1, len(curve)), curve)
                )
    if not curves:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, when, title in zip(figure.subplots(1, 2, sharey=True), (0, -1), ("first", "last"), strict=True):
        for arm, both in curves.items():
            if both[when]:
                axes.plot(places, np.mean(both[when], 0), color=colors[arm], label=arm if when == 0 else None)
        axes.set_title(f"{title} routing", fontsize=9, loc="left")
        axes.set_xlabel("place in the ranking, least uncertain first")
    figure.axes[0].set_ylabel("estimated success")
    figure.axes[0].set_ylim(-0.03, 1.03)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_routes(runs: Sequence[Run]) -> Figure | None:
    """Draw the shares of the three routes at each routing, a panel an arm, averaged over its seeds."""
    arms = list(dict.fromkeys(run.arm for run in runs if run.routes))
    if not arms:
        return None
    num_rows = -(-len(arms) // 4)
    figure = Figure(figsize=(12, 0.6 + 2.3 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, 4, sharey=True, squeeze=False).ravel()
    for axes, arm in zip(grid, arms, strict=False):
        mine = [run.routes for run in runs if run.arm == arm]
        num_routings = min(len(routes) for routes in mine)
        bottom = np.zeros(num_routings)
        for route in Route:
            shares = np.array([[np.mean(routes[i] == route) for i in range(num_routings)] for routes in mine]).mean(0)
            axes.bar(range(num_routings), shares, 0.8, bottom, color=ROUTE_COLORS[route], label=route.name.lower())
            bottom += shares
        axes.set_title(arm, fontsize=9, loc="left")
        axes.set_xticks(range(num_routings))
    for axes in grid[len(arms) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("share of the pool")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _standard_error(curves: np.ndarray) -> np.ndarray:
    if len(curves) < 2:
        return np.zeros(curves.shape[1])
    return curves.std(0, ddof=1) / len(curves) ** 0.5
