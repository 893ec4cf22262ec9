"""Figures that compare arms."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..routing.calibration import calibrate
from ..routing.triage import Route, rank_pool
from .comparison import ArmSummary
from .figures import ROUTE_COLORS, Picture
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


def draw_curves(summaries: Sequence[ArmSummary], runs: Sequence[Run], name: str, colors: dict[str, str]) -> Picture:
    """
    Accuracy against optimizer steps, tokens and labels; bands and bars are one standard error over the seeds. The
    first arm is the reference.
    """

    # At least ten points of a hundred: ticks are whole ones, and noise is not to look like a difference.
    everything = np.concatenate([summary.curves.ravel() for summary in summaries])
    low, high = everything.min(), max(everything.max(), everything.min() + 0.1)

    def finish(axes: Axes, xlabel: str) -> None:
        goal = summaries[0].curves[:, -1].mean()
        axes.axhline(goal, color=colors[summaries[0].arm], linestyle=":", linewidth=1)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"accuracy{f' on {name}' if name else ''}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))  # the same in all panels

    def lines(axes: Axes, places: Callable[[ArmSummary], np.ndarray]) -> None:
        for number, summary in enumerate(summaries):
            mean, error, color = summary.curves.mean(0), _standard_error(summary.curves), colors[summary.arm]
            axes.plot(places(summary), mean, color=color, **_marker(number, 4), linewidth=1.8)
            axes.fill_between(places(summary), mean - error, mean + error, color=color, alpha=0.13, linewidth=0)

    def thousand_tokens(summary: ArmSummary) -> np.ndarray:
        mine = [run.evaluations[name] for run in runs if run.arm == summary.arm and name in run.evaluations]
        return np.mean([found.tokens[np.isin(found.steps, summary.steps)] for found in mine], 0) / 1e3

    def by_steps(axes: Axes) -> None:
        lines(axes, lambda summary: summary.steps)
        finish(axes, "optimizer step")

    def by_tokens(axes: Axes) -> None:
        lines(axes, thousand_tokens)
        finish(axes, "thousand tokens, scoring included")

    def by_labels(axes: Axes) -> None:
        for number, summary in enumerate(summaries):
            error = _standard_error(summary.curves)[-1]
            style = {"color": colors[summary.arm], "capsize": 3, **_marker(number, 8)}
            axes.errorbar(summary.labels.mean, summary.curves[:, -1].mean(), yerr=error, **style)
        axes.set_xlim(left=0)
        finish(axes, "labels bought, at the end")

    panels = [by_steps, by_tokens, *([by_labels] if len(summaries) > 1 else [])]
    return Picture(panels, {summary.arm: colors[summary.arm] for summary in summaries})


def _marker(number: int, size: int) -> dict[str, Any]:
    return {"marker": _MARKERS[number % len(_MARKERS)], "markersize": size}


def draw_labels(summaries: Sequence[ArmSummary], colors: dict[str, str]) -> Picture:
    """The labels that each arm bought (mean over the seeds)."""

    def bars(axes: Axes) -> None:
        for place, summary in enumerate(summaries):
            axes.barh(place, summary.labels.mean, color=colors[summary.arm])
            axes.text(summary.labels.mean, place, f" {summary.labels.mean:,.0f}", va="center", fontsize=9)
        axes.set_yticks(range(len(summaries)), [summary.arm for summary in summaries])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("labels")

    return Picture((bars,), {}, size=(6.5, 0.9 + 0.34 * len(summaries)))


def draw_pseudo_labels(runs: Sequence[Run], colors: dict[str, str]) -> Picture | None:
    """Over the steps: how often votes equal a known label, and what the collapse monitor compares."""
    titles = {
        "pivottrace/vote_accuracy": "votes that equal the label",
        "pivottrace/right_by_vote": "reward on pseudo-labels",
        "pivottrace/right_by_label": "accuracy on annotated prompts",
    }
    logged = {
        (metric, arm): _joined([run.logged(metric) for run in runs if run.arm == arm])
        for metric in titles
        for arm in colors
    }
    known = {arm: color for arm, color in colors.items() if any(len(logged[metric, arm][0]) for metric in titles)}
    if not known:
        return None

    def panel(metric: str, axes: Axes) -> None:
        for arm, color in known.items():
            steps, values = logged[metric, arm]
            if len(steps):
                # A step holds few groups: twelve stretches of the run are averaged, over all seeds.
                edges = np.linspace(0, steps.max(), min(12, len(np.unique(steps))) + 1)
                stretch = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, len(edges) - 2)
                filled = np.unique(stretch)
                means = [values[stretch == part].mean() for part in filled]
                axes.plot((edges[filled] + edges[filled + 1]) / 2, means, color=color, marker="o", markersize=3)
        axes.set_title(titles[metric], fontsize=10, loc="left")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if metric != "pivottrace/right_by_vote":  # rewards have a scale of their own
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return Picture([partial(panel, metric) for metric in titles], known)


def _joined(logged: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of several runs, one behind the other."""
    steps, values = zip(*logged, strict=True)
    return np.concatenate(steps), np.concatenate(values)


def draw_calibration(runs: Sequence[Run], colors: dict[str, str]) -> Picture | None:
    """How often the policy is right along each ranking, by the labels, at the first and the last routing."""
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

    def panel(when: int, axes: Axes) -> None:
        for arm, both in curves.items():
            if both[when]:
                axes.plot(places, np.mean(both[when], 0), color=colors[arm], linewidth=1.8)
        axes.set_title(f"{'last' if when else 'first'} routing", fontsize=10, loc="left")
        axes.set_xlabel("place in the ranking, least uncertain first")
        axes.set_ylabel("estimated success")
        axes.set_ylim(-0.03, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))

    return Picture((partial(panel, 0), partial(panel, -1)), {arm: colors[arm] for arm in curves})


def draw_routes(runs: Sequence[Run]) -> Picture | None:
    """The shares of the three routes at each routing, a panel an arm, averaged over its seeds."""
    arms = list(dict.fromkeys(run.arm for run in runs if run.routes))
    if not arms:
        return None

    def panel(arm: str, axes: Axes) -> None:
        mine = [run.routes for run in runs if run.arm == arm]
        num_routings = min(len(routes) for routes in mine)
        bottom = np.zeros(num_routings)
        for route in Route:
            shares = np.array([[np.mean(routes[i] == route) for i in range(num_routings)] for routes in mine]).mean(0)
            axes.bar(range(num_routings), shares, 0.8, bottom, color=ROUTE_COLORS[route])
            bottom += shares
        axes.set_title(arm, fontsize=10, loc="left")
        axes.set_xlabel("routing")
        axes.set_ylabel("share of the pool")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlim(-0.6, max(num_routings, 3) - 0.4)  # a single routing is a bar, not a wall
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    names = {route.name.lower(): color for route, color in ROUTE_COLORS.items()}
    return Picture([partial(panel, arm) for arm in arms], names)


def _standard_error(curves: np.ndarray) -> np.ndarray:
    if len(curves) < 2:
        return np.zeros(curves.shape[1])
    return curves.std(0, ddof=1) / len(curves) ** 0.5
