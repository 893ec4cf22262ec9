"""Records of runs and their readers: one `run.json` a run."""

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import PRIVATE_FOLDER, reading, write_json
from ..routing.tables import find_routes, read_routes
from ..training.versions import installed


RUN_FILE = "run.json"
# A record is made to be shown: what may be a secret, by its name or as the password of an address, stays out of it.
_SECRET_NAME = re.compile(
    r"(^|[_-])(token|key|apikey|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)
_SECRET_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]*@")
_EVALUATION = re.compile(r"eval_(?:(.+)_)?loss")
_PACKAGES = ("pivottrace-trl", "trl", "transformers", "peft", "datasets", "torch")


def describe_environment() -> dict[str, Any]:
    """Machine, versions and program of this process; no arguments and no environment variables: they may be secret."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({_cpu_name()})"
    return {
        "program": Path(sys.argv[0]).name,
        "device": device,
        "cpu_cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "versions": {package: installed(package) for package in _PACKAGES},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record_run(path: Path, arm: str, args: TrainingArguments, state: TrainerState, **facts: Any) -> None:
    """
    Write a `run.json`: what the trainer logged, and what else the report should know (`num_labels`, `pool_size`,
    `settings`), without what is called a token, key, secret or password.
    """
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    run = {
        "arm": arm,
        "seed": args.seed,
        "max_steps": state.max_steps,
        "steps": state.global_step,
        "peak_gpu_memory_gb": None if peak is None else round(peak / 2**30, 2),
        **_without_secrets(facts),
        "environment": describe_environment(),
        "log_history": [
            {name: value for name, value in entry.items() if value is None or isinstance(value, (int, float))}
            for entry in state.log_history
        ],
    }
    write_json(path, run)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items() if not _SECRET_NAME.search(str(name))}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return _SECRET_IN_ADDRESS.sub("", value) if isinstance(value, str) else value


class RunRecorder(TrainerCallback):
    """
    Writes `output_dir/run.json` when training ends, so that `pivottrace report` can compare the run with others. A
    [`PivotDensityCallback`] writes such a record by itself; this one is for the other arms, such as full supervision,
    and gives an arm its name.

    Args:
        arm (`str`):
            Name of the arm; runs of the same arm are averaged over their seeds.
        num_labels (`int`, *optional*):
            Labels that the run may read, all of them from the start. Leave it out where a [`PivotDensityCallback`]
            buys them: its own record is read then.
        settings (`dict[str, Any]`, *optional*):
            What else the report should show, as plain values. What is called a token, key, secret or password is left
            out.

    Example:
    ```python
    >>> trainer.add_callback(RunRecorder("full supervision", num_labels=len(dataset)))
    ```
    """

    def __init__(self, arm: str, num_labels: int | None = None, settings: dict[str, Any] | None = None):
        self.arm = arm
        self.num_labels = num_labels
        self.settings = settings or {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the record."""
        if state.is_world_process_zero:
            path = Path(str(args.output_dir)) / RUN_FILE
            record_run(path, self.arm, args, state, num_labels=self.num_labels, settings=self.settings)


@dataclass(frozen=True)
class Evaluation:
    """Mean reward of one run on one set, and what was spent by then. Arrays have shape `(num_evaluations,)`."""

    steps: np.ndarray
    accuracy: np.ndarray
    tokens: np.ndarray  # of prompts and rollouts, scoring included, evaluation not
    labels: np.ndarray


@dataclass(frozen=True)
class Run:
    """One arm with one seed. Routes, scores and pass rates are arrays of shape `(num_prompts,)`, one a routing."""

    folder: Path
    arm: str
    seed: int
    num_labels: int
    pool_size: int | None  # where a callback routed the pool
    max_steps: int
    steps: int
    evaluations: dict[str, Evaluation]  # by the name of the set; "" where there is only one
    log_history: list[dict[str, Any]]
    routes: list[np.ndarray]
    scores: list[np.ndarray]
    pass_rates: list[np.ndarray]  # of the verified prompts, NaN for the others
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
        runs += [_read_run(file) for file in files]
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


def _read_run(file: Path) -> Run:
    folder = file.parent.parent if file.parent.name == PRIVATE_FOLDER else file.parent
    tables = [read_routes(path) for path in find_routes(folder / PRIVATE_FOLDER).values()]
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
