"""The comparison of runs as one page that needs nothing else."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from ..files import check_writable, replace_atomically, without_nan, write_json
from .comparison import ArmSummary, SeedMean, summarise
from .curves import arm_colors, draw_calibration, draw_curves, draw_labels, draw_pseudo_labels, draw_routes
from .figures import Picture, save_figure
from .label_story import tell_label_story
from .record import Run


# How much sooner the paper says, to be set against what was measured.
PUBLISHED_SPEED_UP = 2.75


def write_report(runs: Sequence[Run], output: Path, reference: str = "full supervision") -> Path:
    """Write `report.html`, the pictures in it as PNG, and its figures as `report.json`; `reference` is an arm."""
    check_writable(output)
    arms = sorted(dict.fromkeys(run.arm for run in runs), key=lambda arm: arm != reference)
    colors = arm_colors(arms)
    sets = sorted({name for run in runs for name in run.evaluations})
    tables = {name: summarise(runs, name, reference) for name in sets}
    pictures: dict[str, Picture | None] = {}
    for name, summaries in tables.items():
        pictures[f"accuracy{f'-{name}' if name else ''}"] = draw_curves(summaries, runs, name, colors)
    if tables:
        pictures["labels"] = draw_labels(next(iter(tables.values())), colors)
    pictures |= {
        "routes": draw_routes(runs),
        "calibration": draw_calibration(runs, colors),
        "pseudo-labels": draw_pseudo_labels(runs, colors),
    }
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in drawn.items():
        save_figure(picture.whole(), output / f"{name}.png")
    first_runs = {run.arm: run for run in reversed(runs)}
    stories = [story for arm in arms if (story := tell_label_story(first_runs[arm])) is not None]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": _share, "change": _change, "number": _number, "limits": _limits}
    page = environment.from_string((files(__package__) / "page.html.j2").read_text("utf-8")).render(
        reference=reference,
        tables=tables,
        pictures=drawn,
        panels={name: [base64.b64encode(png).decode() for png in picture.single()] for name, picture in drawn.items()},
        colors=colors,
        runs=runs,
        stories=stories,
        has_random=any(summary.against_random for summaries in tables.values() for summary in summaries),
        verdicts=collapse_verdicts(runs),
        environments=_environments(runs),
        published_speed_up=PUBLISHED_SPEED_UP,
    )
    figures = {name: [_plain(summary) for summary in summaries] for name, summaries in tables.items()}
    write_json(output / "report.json", figures)
    replace_atomically(output / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return output / "report.html"


def collapse_verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """
    What the collapse monitor said of each arm with pseudo-labels: how many of its runs were paused, the step of the
    first pause, and the mean share of votes that equal the label in the first and the last third of the run.
    """
    verdicts = []
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm and len(run.logged("pivottrace/votes_paused")[0])]
        if not mine:
            continue
        pauses = [steps[values > 0] for steps, values in (run.logged("pivottrace/votes_paused") for run in mine)]
        first = [int(steps[0]) for steps in pauses if len(steps)]
        thirds: list[list[float]] = [[], []]
        for run in mine:
            steps, values = run.logged("pivottrace/vote_accuracy")
            thirds[0] += values[steps <= run.steps / 3].tolist()
            thirds[1] += values[steps > run.steps * 2 / 3].tolist()
        means = [sum(part) / len(part) if part else float("nan") for part in thirds]
        verdicts.append(
            {
                "arm": arm,
                "num_runs": len(mine),
                "num_paused": len(first),
                "first_step": min(first, default=None),
                "vote_accuracy": means,
            }
        )
    return verdicts


def _environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each machine with its versions once, with the programs that ran there."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        program = run.environment.get("program", "")
        machine = {key: value for key, value in run.environment.items() if key != "program"}
        entry = found.setdefault(json.dumps(machine, sort_keys=True), {**machine, "programs": [], "num_runs": 0})
        entry["num_runs"] += 1
        if program not in entry["programs"]:
            entry["programs"].append(program)
    return list(found.values())


def _plain(summary: ArmSummary) -> dict[str, Any]:
    """A summary as JSON can hold it."""
    values = asdict(summary).items()
    return without_nan({name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values})


def _share(value: SeedMean | float | None) -> str:
    mean = value.mean if isinstance(value, SeedMean) else value
    return "–" if mean is None or mean != mean else f"{mean:.1%}"


def _change(value: SeedMean | None) -> str:
    return "–" if value is None else f"{value.mean:+.1%}"


def _limits(value: SeedMean | None, sign: str = "") -> str:
    """The interval of a mean, where there are several seeds."""
    return "" if value is None or value.low != value.low else f"{value.low:{sign}.1%} to {value.high:{sign}.1%}"


def _number(value: SeedMean) -> str:
    return f"{value.mean:,.0f}"
