"""
Draw docs/images/how_it_works.png: the way of a pool through the method.

    python scripts/how_it_works_figure.py

Everything with numbers in it is real: the first routing of the demo's pool by the demo's embedded model, seed 0. Takes
a minute on a CPU and needs no network.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from transformers import GenerationConfig

from pivottrace_trl import PivotDensityCallback, Route
from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import ANNOTATION_BUDGET, Size
from pivottrace_trl.demo.trainer import make_trainer
from pivottrace_trl.report.figures import BLUE, RED, ROUTE_COLORS
from pivottrace_trl.routing.triage import rank_pool
from pivottrace_trl.tracing.pivots import find_pivots
from pivottrace_trl.tracing.rollout_pass import trace_rollouts
from pivottrace_trl.tracing.rollouts import Rollout, transformers_generator
from pivottrace_trl.tracing.trace import ResponseTrace


WIDTH, HEIGHT = 10.0, 4.5  # inches
TOP, BOTTOM = 3.62, 1.12  # of what stands under the headings
SEED = 0
INK, PALE = "#25313d", "#67727e"


@dataclass
class Routing:
    """What the figure shows."""

    prompts: list[str]
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    probe_places: np.ndarray
    probe_rates: np.ndarray
    counts: dict[str, int]
    num_labels: int
    num_probes: int
    problem: str
    trace: ResponseTrace
    threshold: float
    tau_high: float
    tau_low: float


def route_the_demo_pool() -> Routing:
    """Route the demo's pool for the first time, and trace the model's answer to one of its prompts."""
    pool = make_pool(Size().pool, SEED)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(pool, Path(folder), SEED, Size(max_steps=1))
        trainer.args.disable_tqdm = True
        callback = PivotDensityCallback(trainer, annotation_budget=ANNOTATION_BUDGET)
        trainer.add_callback(callback)
        trainer.get_train_dataloader()  # asks for the sampler, which routes the pool
        router, scorer, summary = callback.router, callback.scorer, callback.summary()
        ranking, calibration = rank_pool(router.scores), router.calibration
        assert calibration is not None and not calibration.is_flat and scorer.density.threshold is not None

        tokenizer: Any = trainer.processing_class
        model: Any = trainer.model
        model.eval()
        prompts = [prompt[0]["content"] for prompt in pool["prompt"]]
        problem = next(text for text in prompts if len(text) > 14)
        config = GenerationConfig(max_new_tokens=80, do_sample=False, eos_token_id=1, pad_token_id=0)
        message = [{"role": "user", "content": problem}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        (response,) = transformers_generator(model, tokenizer, config)([ids])
        rollouts = [Rollout(ids, response)]
        (trace,), _ = trace_rollouts(model, rollouts, tokenizer.pad_token_id, scorer.heads, progress=False)
        is_probe = np.isin(ranking, router.probes)
        callback.detach()
    return Routing(
        prompts=prompts,
        curve=calibration.curve,
        low=calibration.low,
        high=calibration.high,
        probe_places=np.flatnonzero(is_probe) + 1,
        probe_rates=router.evidence.pass_rate[ranking][is_probe],
        counts=summary["routes"],
        num_labels=summary["annotated"],
        num_probes=summary["probes"],
        problem=problem,
        trace=trace,
        threshold=scorer.density.threshold,
        tau_high=router.config.tau_high,
        tau_low=router.config.tau_low,
    )


def draw(routing: Routing, path: Path) -> None:
    """Draw the figure."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    page.axis("off")
    columns = {"pool": 0.12, "trace": 1.72, "rank": 4.22, "route": 6.72, "train": 8.32}
    for number, (name, heading, line) in enumerate(
        (
            ("pool", "pool", f"{len(routing.prompts)} prompts, no labels"),
            ("trace", "answer once, trace", "one response each, one pass"),
            ("rank", "rank, verify a few", f"{routing.num_probes} labels say where to cut"),
            ("route", "route", f"{routing.num_labels} labels in all"),
            ("train", "train (GRPO)", "reward compares with"),
        ),
        1,
    ):
        page.text(columns[name], 4.22, f"{number}  {heading}", fontsize=11.5, weight="bold", color=INK)
        page.text(columns[name], 3.94, line, fontsize=9, color=PALE)
    _draw_pool(page, routing, columns["pool"])
    _draw_trace(figure, page, routing, columns["trace"])
    _draw_ranking(figure, routing, columns["rank"])
    _draw_routes(page, routing, columns["route"], columns["train"])
    for x in (1.43, 3.86):
        _arrow(page, (x, 2.37), (x + 0.23, 2.37))
    figure.savefig(path, dpi=180)


def _inset(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(labelsize=8.5, colors=PALE, length=2)
    return axes


def _arrow(page: Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    style = {"color": PALE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, **style}
    page.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, **style))


def _box(page: Axes, left: float, bottom: float, width: float, height: float, **style) -> None:
    style = {"facecolor": "white", "edgecolor": PALE, "linewidth": 0.9, **style}
    shape = "round,pad=0,rounding_size=0.06"
    page.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, **style))


def _draw_pool(page: Axes, routing: Routing, left: float) -> None:
    cards = [text for text in routing.prompts if len(text) <= 12][:5]
    for number, text in enumerate(cards):
        bottom = TOP - 0.38 - 0.44 * number
        _box(page, left, bottom, 1.25, 0.34)
        page.text(left + 0.1, bottom + 0.17, text.removesuffix("?"), fontsize=8.5, va="center", color=INK)
        page.text(left + 1.14, bottom + 0.17, "?", fontsize=9, va="center", ha="right", color=RED, weight="bold")
    page.text(left + 0.62, TOP - 0.38 - 0.44 * len(cards) + 0.2, "⋮", fontsize=12, ha="center", color=PALE)


def _draw_trace(figure: Figure, page: Axes, routing: Routing, left: float) -> None:
    signal, entropy = routing.trace.long_range_mass, routing.trace.entropy
    pivots = np.flatnonzero(find_pivots(signal, routing.threshold))
    places = np.arange(len(signal)) + 1
    upper = _inset(figure, left + 0.47, BOTTOM + 1.17, 1.58, 1.1)
    lower = _inset(figure, left + 0.47, BOTTOM + 0.4, 1.58, 0.5)
    upper.plot(places, signal, color=BLUE, linewidth=1.2)
    upper.scatter(places[pivots], signal[pivots], color=RED, s=14, zorder=3, clip_on=False)
    lower.bar(places, entropy, width=1.0, color=PALE)
    upper.tick_params(labelbottom=False)
    for axes, highest, name in ((upper, signal.max(), "far attention"), (lower, entropy.max(), "entropy")):
        axes.set_ylim(0, 1.05 * highest)
        axes.set_xlim(0, len(signal) + 1)
        axes.set_ylabel(name, fontsize=9, color=PALE)
        axes.yaxis.set_label_coords(-0.235, 0.5)
    lower.set_xlabel("response token", fontsize=9, color=PALE, labelpad=2)
    upper.plot(0.06, 0.93, "o", color=RED, markersize=3.8, transform=upper.transAxes)
    upper.text(0.11, 0.93, "pivot: it jumps", fontsize=9, color=RED, va="center", transform=upper.transAxes)
    page.text(left + 0.47, TOP - 0.17, routing.problem, fontsize=9, color=INK)


def _draw_ranking(figure: Figure, routing: Routing, left: float) -> None:
    axes = _inset(figure, left + 0.42, BOTTOM + 0.4, 1.75, TOP - BOTTOM - 0.45)
    places = np.arange(len(routing.curve)) + 1
    ask = 1 - routing.tau_low
    zones = [
        (Route.DISCARD, routing.curve >= routing.tau_high),
        (Route.WEAK, (routing.curve < routing.tau_high) & (routing.curve >= ask)),
        (Route.ANNOTATE, routing.curve < ask),
    ]
    for route, is_here in zones:
        if is_here.any():
            start, end = places[is_here][[0, -1]]
            axes.axvspan(start - 0.5, end + 0.5, color=ROUTE_COLORS[route], alpha=0.28, linewidth=0)
    axes.fill_between(places, routing.low, routing.high, color=INK, alpha=0.13, linewidth=0)
    axes.plot(places, routing.curve, color=BLUE, linewidth=1.5)
    axes.plot(routing.probe_places, routing.probe_rates, "o", color=RED, markersize=3.4, clip_on=False)
    axes.plot(0.07, 0.26, "o", color=RED, markersize=3.8, transform=axes.transAxes)
    axes.text(0.12, 0.26, "probe", fontsize=9, color=RED, va="center", transform=axes.transAxes)
    axes.text(0.04, 0.36, "estimate", fontsize=9, color=BLUE, va="center", transform=axes.transAxes)
    for level in (routing.tau_high, ask):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=":")
    axes.set_yticks([0, ask, routing.tau_high, 1], ["0", f"{ask:g}", f"{routing.tau_high:g}", "1"])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(1, len(places))
    axes.set_xticks([])
    axes.set_xlabel("prompts, surest first", fontsize=9, color=PALE, labelpad=4)
    axes.set_ylabel("share of right answers", fontsize=9, color=PALE, labelpad=1)


def _draw_routes(page: Axes, routing: Routing, left: float, right: float) -> None:
    rows = (
        (Route.ANNOTATE, "annotate", "label is bought", ("the label that", "was bought")),
        (Route.WEAK, "weak", "no label", ("majority answer of", "the group, if ¾ agree")),
        (Route.DISCARD, "discard", "mastered", ()),
    )
    height, step = 0.66, 0.92
    for number, (route, name, line, reward) in enumerate(rows):
        bottom = TOP - height - step * number
        _box(page, left, bottom, 1.22, height, facecolor=ROUTE_COLORS[route], edgecolor="none")
        ink, title = "white" if route == Route.ANNOTATE else INK, f"{name}  {routing.counts[name]}"
        page.text(left + 0.1, bottom + 0.45, title, fontsize=10, weight="bold", color=ink, va="center")
        page.text(left + 0.1, bottom + 0.2, line, fontsize=9, color=ink, va="center")
        middle = bottom + height / 2
        _arrow(page, (left - 0.3, 2.37), (left - 0.04, middle), color=ROUTE_COLORS[route])
        if reward:
            _arrow(page, (left + 1.26, middle), (right - 0.04, middle), color=ROUTE_COLORS[route])
            _box(page, right, bottom, 1.56, height, edgecolor=ROUTE_COLORS[route], linewidth=1.4)
            for place, text in zip((0.45, 0.2), reward, strict=True):
                page.text(right + 0.1, bottom + place, text, fontsize=9, color=INK, va="center")
        else:
            page.text(right, middle, "not trained on", fontsize=9, color=PALE, va="center")
    # Back to the ranking: the rollouts of training are scored in the passes of the loss.
    start, end, low = right + 1.3, 5.5, 0.42
    page.plot([start, start, end], [1.98, low, low], color=PALE, linewidth=1.4, solid_joinstyle="round")
    _arrow(page, (end, low), (end, 0.98))
    page.text((start + end) / 2, low - 0.22, "each epoch: training's own rollouts, votes and pass rates", fontsize=9,
              color=PALE, ha="center")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent.parent
    parser.add_argument("--output", type=Path, default=root / "docs" / "images" / "how_it_works.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(route_the_demo_pool(), args.output)


if __name__ == "__main__":
    main()
