"""What a run leaves for the comparison with others: one `run.json`."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import write_json
from ..training.versions import installed


RUN_FILE = "run.json"
# A record is made to be shown: what may be a secret, by its name or as the password of an address, stays out of it.
_SECRET_NAME = re.compile(
    r"(^|[_-])(token|key|apikey|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)
_SECRET_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]*@")
_PACKAGES = ("pivottrace-trl", "trl", "transformers", "peft", "datasets", "torch")


def describe_environment() -> dict[str, Any]:
    """
    Machine, versions and program of this process; no arguments and no environment variables, which may be secrets.

    Returns:
        `dict[str, Any]`: `program`, `device`, `cpu_cores`, `memory_gb`, `python`, `platform` and `versions` (package
        to version).
    """
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
    Write a `run.json`.

    Args:
        path (`Path`): the file.
        arm (`str`): name of the arm.
        args (`~transformers.TrainingArguments`): arguments of the trainer; seed and steps are kept.
        state (`~transformers.TrainerState`): its log history is kept.
        **facts: what else the report should know: `num_labels`, `pool_size`, `settings`; without what is called a
            token, key, secret or password.
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
    trainer with a [`PivotDensityCallback`] leaves the like without it; this one is for the other arms, such as full
    supervision, and names them.

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
