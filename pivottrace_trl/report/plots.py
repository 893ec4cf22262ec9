"""Plots of a run as PNG."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from ..routing.triage import Evidence, Route, TriageConfig, TriageResult
from ..tracing.pivots import find_pivots
from ..tracing.trace import ResponseTrace
from .figures import BLUE, GREY, LIGHT, RED, ROUTE_COLORS, save_figure


# More points than this cannot be told apart, and take long to draw.
_MAX_POINTS = 2000
# A figure grows by the routing, in inches and in memory.
_MAX_ROUTINGS = 12


def plot_route_flow(routes_by_epoch: Sequence[np.ndarray], path: Path) -> None:
    """Draw how prompts move between routes from one routing to the next; of more than twelve, twelve evenly spaced."""
    num_prompts = len(routes_by_epoch[0])
    numbers = np.unique(np.linspace(0, len(routes_by_epoch) - 1, _MAX_ROUTINGS).astype(int)).tolist()
    routes_by_epoch = [routes_by_epoch[number] for number in numbers]
    figure = Figure(figsize=(2.5 + 1.6 * len(routes_by_epoch), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.34
    bottoms = []
    for routes in routes_by_epoch:
        counts = [int((routes == route).sum()) for route in Route]
        bottoms.append(dict(zip(Route, np.concatenate([[0], np.cumsum(counts)[:-1]]), strict=True)))
    for place, routes in enumerate(routes_by_epoch):
        for route in Route:
            count = int((routes == route).sum())
            axes.bar(place, count, width, bottoms[place][route], color=ROUTE_COLORS[route], edgecolor="white")
            if count >= 0.04 * num_prompts:
                axes.text(
                    place, bottoms[place][route] + count / 2, str(count), ha="center", va="center", color="white"
                )
    for place, (before, after) in enumerate(zip(routes_by_epoch, routes_by_epoch[1:], strict=False)):
        leave, enter = dict(bottoms[place]), dict(bottoms[place + 1])
        for source in Route:
            for target in Route:
                count = int(((before == source) & (after == target)).sum())
                if count:
                    x = np.linspace(place + width / 2, place + 1 - width / 2, 40)
                    ease = (1 - np.cos(np.linspace(0, np.pi, 40))) / 2
                    low = leave[source] + (enter[target] - leave[source]) * ease
                    axes.fill_between(x, low, low + count, color=ROUTE_COLORS[source], alpha=0.3, linewidth=0)
                    leave[source] += count
                    enter[target] += count
    axes.set_xticks(range(len(routes_by_epoch)), [f"routing {number}" for number in numbers])
    axes.set_ylabel("prompts")
    axes.set_ylim(0, num_prompts)
    handles = [axes.bar(0, 0, color=ROUTE_COLORS[route]) for route in reversed(Route)]
    axes.legend(handles, [route.name.lower() for route in reversed(Route)], loc="upper center", ncols=3,
                bbox_to_anchor=(0.5, 1.12), frameon=False)  # fmt: skip
    save_figure(figure, path)


def plot_calibration(result: TriageResult, evidence: Evidence, config: TriageConfig, path: Path) -> None:
    """Draw how often the policy is right along the ranking, by the verified prompts, and where the thresholds cut."""
    calibration = result.calibration
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    shown = _thin(np.arange(len(result.ranking)))
    band = calibration.low[shown], calibration.high[shown]
    axes.fill_between(shown + 1, *band, color=LIGHT, linewidth=0, label="90% band")
    axes.plot(shown + 1, calibration.curve[shown], color=BLUE, label="estimated success")
    rates = evidence.pass_rate[result.ranking]
    verified = _thin(np.flatnonzero(np.isfinite(rates)))
    axes.plot(verified + 1, rates[verified], "o", color=RED, markersize=4, alpha=0.6, label="verified prompts")
    for level, name in ((config.tau_high, "discard above"), (1 - config.tau_low, "ask for a label below")):
        axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
        axes.text(1, level, name, ha="left", va="top", fontsize=8, color="#67727e")
    axes.set_xlabel("prompts, least uncertain first")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(-0.05, 1.05)
    separation = "" if np.isnan(calibration.separation) else f", AUROC of the score {calibration.separation:.2f}"
    axes.set_title(f"calibration error {calibration.error:.2f}{separation}", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_scores(scores: np.ndarray, densities: np.ndarray, result: TriageResult, path: Path) -> None:
    """Draw how scores and pivot densities, both of shape `(num_prompts,)`, are spread over the routes."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for axes, values, name in zip(figure.subplots(1, 2), (scores, densities), ("score", "pivot density"), strict=True):
        is_known = np.isfinite(values)
        groups = [values[is_known & (result.routes == route)] for route in Route]
        if is_known.any():
            # A few prompts far out must not squeeze all others into one bar.
            limits = np.quantile(values[is_known], [0.0, 0.995])
            bins = np.linspace(limits[0], max(limits[1], limits[0] + 1e-9), 31)
            clipped = [np.minimum(group, bins[-1]) for group in groups]
            colors = [ROUTE_COLORS[route] for route in Route]
            axes.hist(clipped, bins, stacked=True, color=colors, label=[route.name.lower() for route in Route])
        axes.set_xlabel(name)
    left, right = figure.axes
    left.set_ylabel("prompts")
    for threshold, name in ((result.discard_below, "discard below"), (result.annotate_above, "annotate above")):
        if np.isfinite(threshold):
            left.axvline(threshold, color=RED, linewidth=1, linestyle="--")
            left.text(threshold, left.get_ylim()[1], f" {name}", rotation=90, va="top", ha="right", fontsize=8)
    right.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_spend(times: Sequence[datetime], budget: int, path: Path) -> None:
    """Draw the labels bought over time, below the budget."""
    figure = Figure(figsize=(6.5, 3.0), layout="constrained")
    axes = figure.add_subplot()
    if times:
        now = datetime.now(times[0].tzinfo)
        places = date2num([min(*times, now - timedelta(minutes=10)), *sorted(times), now])
        counts = np.concatenate([np.arange(len(times) + 1), [len(times)]])
        axes.step(places, counts, where="post", color=BLUE)
        axes.fill_between(places, counts, step="post", color=BLUE, alpha=0.15)
        axes.xaxis_date()
    axes.axhline(budget, color=RED, linewidth=1, linestyle="--")
    axes.text(0.01, budget, f"budget {budget}", va="bottom", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_ylim(0, 1.15 * max(budget, len(times), 1))
    axes.set_ylabel("labels bought")
    axes.tick_params(axis="x", labelrotation=20, labelsize=7)
    save_figure(figure, path)


def plot_trace(trace: ResponseTrace, tokens: Sequence[str], threshold: float, path: Path, title: str = "") -> None:
    """Draw the long-range attention and the entropy of one response, with its pivots."""
    shown = slice(0, 160)  # more tokens than this cannot be read on one plot
    signal, entropy, tokens = trace.long_range_mass[shown], trace.entropy[shown], list(tokens)[shown]
    pivots = np.flatnonzero(find_pivots(trace.long_range_mass, threshold)[shown])
    figure = Figure(figsize=(max(7.0, 0.16 * len(signal)), 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    upper.plot(signal, color=BLUE, linewidth=1.2, label="attention further than 16 tokens back")
    upper.scatter(pivots, signal[pivots], color=RED, s=22, zorder=3, label=f"{len(pivots)} pivots")
    upper.set_ylabel("attention mass")
    upper.margins(y=0.15)  # room for the legend
    upper.set_title(_shorten(title), fontsize=9, loc="left")
    upper.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    lower.bar(np.arange(len(entropy)), entropy, color=GREY)
    lower.bar(pivots, entropy[pivots], color=RED)
    lower.set_ylabel("entropy (nats)")
    labels = [token.replace("\n", "\u21b5").replace("$", r"\$") for token in tokens]
    lower.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
    lower.set_xlim(-1, len(labels))
    save_figure(figure, path)


def _shorten(text: str, length: int = 110) -> str:
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def _thin(places: np.ndarray) -> np.ndarray:
    """At most `_MAX_POINTS` of some places, evenly spread, the first and the last among them."""
    if len(places) <= _MAX_POINTS:
        return places
    return places[np.linspace(0, len(places) - 1, _MAX_POINTS).astype(int)]
