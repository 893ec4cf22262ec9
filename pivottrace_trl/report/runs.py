"""Runs as the comparison reads them: one `run.json` each, and the routes beside it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import PRIVATE_FOLDER, reading
from ..routing.triage import Route
from .record import RUN_FILE


_EVALUATION = re.compile(r"eval_(?:(.+)_)?loss")


@dataclass(frozen=True)
class Evaluation:
    """
    Accuracy of one run on one set. Arrays have shape `(num_evaluations,)`.

    Attributes:
        steps (`np.ndarray`, int): optimizer steps.
        accuracy (`np.ndarray`, float): mean reward.
        tokens (`np.ndarray`, float): tokens of prompts and rollouts up to there, scoring included, evaluation not.
        labels (`np.ndarray`, int): labels bought up to there.
    """

    steps: np.ndarray
    accuracy: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Run:
    """
    One arm with one seed.

    Attributes:
        folder (`Path`): where it lies.
        arm (`str`): name of the arm.
        seed (`int`): seed.
        num_labels (`int`): labels bought in all.
        pool_size (`int` or `None`): prompts in the pool, where a callback routed it.
        max_steps (`int`): optimizer steps that were planned.
        steps (`int`): optimizer steps that were made.
        evaluations (`dict[str, Evaluation]`): evaluated set -> curve; the name is "" where there is one set only.
        log_history (`list[dict]`): everything the trainer logged.
        routes (`list[np.ndarray]`): routes of each routing, each of shape `(num_prompts,)`; empty without a callback.
        scores, pass_rates (`list[np.ndarray]`): score and verified pass rate (NaN if unknown) at each routing.
        environment (`dict[str, Any]`): machine, versions, program.
        settings (`dict[str, Any]`): what the run says of itself.
        peak_gpu_memory_gb (`float` or `None`): highest memory of the first GPU, in GiB.
    """

    folder: Path
    arm: str
    seed: int
    num_labels: int
    pool_size: int | None
    max_steps: int
    steps: int
    evaluations: dict[str, Evaluation]
    log_history: list[dict[str, Any]]
    routes: list[np.ndarray]
    scores: list[np.ndarray]
    pass_rates: list[np.ndarray]
    environment: dict[str, Any]
    settings: dict[str, Any]
    peak_gpu_memory_gb: float | None

    def logged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, both of shape `(num_entries,)`, at which the trainer logged `name`."""
        entries = [(entry["step"], entry[name]) for entry in self.log_history if entry.get(name) is not None]
        return np.array([step for step, _ in entries]), np.array([value for _, value in entries], float)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """
    Read all runs in some folders.

    Args:
        paths (`Sequence[Path]`): folders of runs, or folders that hold such folders, at any depth.

    Returns:
        `list[Run]`: by the path in which they lie.

    Raises:
        FileNotFoundError: if a folder holds no finished run.
        ValueError: if a record cannot be read, or two runs have the same arm and seed.
    """
    runs: list[Run] = []
    for path in paths:
        # A run with a callback has two records, and the one of the recorder knows the name of the arm.
        files = [file for file in sorted(path.rglob(RUN_FILE)) if not _has_recorder(file)]
        if not files:
            raise FileNotFoundError(
                f"There is no finished run in {path}: no {RUN_FILE} at any depth. It is written when training ends, "
                "by a PivotDensityCallback or a RunRecorder."
            )
        runs += [_read(file) for file in files]
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        other = seen.setdefault((run.arm, run.seed), run.folder)
        if other != run.folder:
            raise ValueError(
                f"{other} and {run.folder} are both seed {run.seed} of {run.arm!r}. Give them different seeds, or "
                "name their arms with RunRecorder(arm)."
            )
    return runs


def _has_recorder(file: Path) -> bool:
    return file.parent.name == PRIVATE_FOLDER and (file.parent.parent / RUN_FILE).is_file()


def _read(file: Path) -> Run:
    folder = file.parent.parent if file.parent.name == PRIVATE_FOLDER else file.parent
    tables = [_read_routes(path) for path in sorted((folder / PRIVATE_FOLDER).glob("routes-epoch-*.parquet"))]
    with reading(file, "It is no record of a run: remove it, or run again."):
        record = json.loads(file.read_text())
        own = file.parent / PRIVATE_FOLDER / RUN_FILE
        bought = json.loads(own.read_text()) if own.is_file() else record
        num_labels = record["num_labels"] if record["num_labels"] is not None else bought["num_labels"]
        return Run(
            folder=folder,
            arm=record["arm"],
            seed=record["seed"],
            num_labels=num_labels,
            pool_size=bought.get("pool_size"),
            max_steps=record["max_steps"],
            steps=record["steps"],
            evaluations=_evaluations(record["log_history"], num_labels),
            log_history=record["log_history"],
            routes=[routes for routes, _, _ in tables],
            scores=[scores for _, scores, _ in tables],
            pass_rates=[pass_rates for _, _, pass_rates in tables],
            environment=record["environment"],
            settings=record["settings"],
            peak_gpu_memory_gb=record["peak_gpu_memory_gb"],
        )


def _read_routes(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Routes, scores and pass rates of one routing."""
    with reading(path, "It is no table of routes: remove it, or run again."):
        table = pq.read_table(path).to_pydict()
        routes = np.array([Route[name.upper()] for name in table["route"]], np.int8)
        return routes, np.array(table["score"], float), np.array(table["pass_rate"], float)


def _evaluations(log_history: list[dict[str, Any]], num_labels: int) -> dict[str, Evaluation]:
    """The evaluations in a trainer's log; the log itself says what was spent by then."""
    curves: dict[str, list[tuple[int, float, float, int]]] = {}
    labels, scoring_tokens = None, 0.0
    # The first evaluation is logged before the first routing's figures, but comes after the routing itself.
    at_start = [entry for entry in log_history if "pivottrace/labels_bought" in entry][:1]
    for entry in [*at_start, *log_history]:
        labels = entry.get("pivottrace/labels_bought", labels)
        scoring_tokens = max(scoring_tokens, entry.get("pivottrace/scoring_tokens", 0.0))
        names = [match[1] or "" for key in entry if (match := _EVALUATION.fullmatch(key))]
        if names and entry.get("eval_reward") is not None:
            spent = entry.get("eval_num_tokens", np.nan) + scoring_tokens
            point = (entry["step"], entry["eval_reward"], spent, num_labels if labels is None else int(labels))
            curves.setdefault(names[0], []).append(point)
    return {name: Evaluation(*map(np.array, zip(*points, strict=True))) for name, points in curves.items()}
