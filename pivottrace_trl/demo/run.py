"""Runs two arms side by side for the same number of steps: full supervision, and PivotTrace on 29.3% of the labels."""

import json
import os
import traceback
import warnings
from dataclasses import asdict, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..files import PRIVATE_FOLDER, replace_atomically
from ..progress import progress_bar
from .arm import Arm, Size, first_step_at
from .plots import plot_arms


SIZE = Size()
LOG_FILE = "log.txt"


def run_demo(output_dir: Path, seed: int = 0, max_steps: int | None = None) -> list[Arm]:
    """
    Run both arms, each in its own process, and show the results.

    Args:
        output_dir (`Path`): folder for `results.json`, `learning_curves.png` and the runs.
        seed (`int`, *optional*, defaults to `0`): seed of pool, training and evaluation.
        max_steps (`int`, *optional*): optimizer steps of each arm.

    Returns:
        `list[Arm]`: full supervision and PivotTrace.

    Raises:
        RuntimeError: if an arm fails. The other one is then stopped, too.
    """
    size = SIZE if max_steps is None else replace(SIZE, max_steps=max_steps)
    names = ("full supervision", "PivotTrace")
    folders = {name: output_dir / name.lower().replace(" ", "-") for name in names}
    for folder in folders.values():
        # Each demo is a separate experiment, which must not know the labels that an earlier one bought. A run that was
        # killed leaves its write-ahead log, too.
        for path in (folder / PRIVATE_FOLDER).glob("ledger.sqlite*"):
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    arms = _run_side_by_side(folders, seed, size)
    _show(Console(), [arms[name] for name in names], output_dir, seed)
    return [arms[name] for name in names]


def _run_side_by_side(folders: dict[str, Path], seed: int, size: Size) -> dict[str, Arm]:
    context = get_context("spawn")
    processes, receivers = {}, {}
    arms: dict[str, Arm] = {}
    try:
        for name, folder in folders.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_arm, args=(name, folder, seed, size, sender), daemon=True)
            process.start()
            sender.close()  # the other process has its own copy; this one sees the end of the pipe when that dies
            processes[name], receivers[name] = process, receiver
        with progress_bar("Training both arms", 2 * size.max_steps) as advance:
            while len(arms) < len(folders):
                ready = wait([receiver for name, receiver in receivers.items() if name not in arms])
                for name, receiver in receivers.items():
                    if receiver not in ready:
                        continue
                    try:
                        message = receiver.recv()
                    except EOFError:
                        processes[name].join()
                        message = f"its process was ended (exit status {processes[name].exitcode})"
                    if isinstance(message, str):
                        raise RuntimeError(f"{name} failed: {message}. See {folders[name] / LOG_FILE}")
                    if isinstance(message, Arm):
                        arms[name] = message
                    else:
                        advance(message)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    return arms


def _run_arm(name: str, folder: Path, seed: int, size: Size, sender: Connection) -> None:
    """The body of a process. Its output goes to a file; steps, results and errors go to `sender`."""
    with (folder / LOG_FILE).open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        try:
            from .trainer import run_arm  # takes ten seconds, so both processes import at the same time

            sender.send(run_arm(name, folder, seed, size, lambda: sender.send(1)))
        except Exception as error:
            traceback.print_exc()
            sender.send(f"{type(error).__name__}: {error}")


def _show(console: Console, arms: list[Arm], output_dir: Path, seed: int) -> None:
    full, pivot = arms
    # Largest standard error of a mean over independent problems (accuracy 0.5, all samples of a problem equal).
    error = 0.5 / SIZE.held_out**0.5
    table = Table(title=f"Held-out accuracy (avg@{SIZE.eval_samples} of {SIZE.held_out} problems, seed {seed})")
    for column in ("arm", "labels", "before", "after", "best", "rollout tokens", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in arms:
        table.add_row(
            arm.name, str(arm.labels), f"{arm.accuracies[0]:.1%}", f"{arm.accuracies[-1]:.1%}",
            f"{max(arm.accuracies):.1%}", f"{arm.rollout_tokens[-1]:,}", f"{arm.seconds:.0f}",
        )  # fmt: skip
    console.print(table)
    curves = Table(title="Learning curves")
    curves.add_column("step", justify="right")
    for arm in arms:
        curves.add_column(arm.name, justify="right")
    for row in zip(full.steps, full.accuracies, pivot.accuracies, strict=True):
        curves.add_row(str(row[0]), *(f"{accuracy:.1%}" for accuracy in row[1:]))
    console.print(curves)
    target, difference = full.accuracies[-1], pivot.accuracies[-1] - full.accuracies[-1]
    step = first_step_at(pivot, target)
    share = pivot.labels / full.labels
    if step is None:
        console.print(f"PivotTrace did not reach the final accuracy of full supervision ({target:.1%}) on this seed.")
    else:
        console.print(
            f"PivotTrace reached the final accuracy of full supervision ({target:.1%}) at step {step} of "
            f"{full.steps[-1]}, with {share:.1%} of the labels."
        )
    verdict = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
    console.print(
        f"At the end PivotTrace is {abs(difference):.1%} {verdict} full supervision (standard error up to {error:.1%} "
        "an arm: one seed proves little)."
    )
    results = {"seed": seed, "arms": [asdict(arm) for arm in arms]}
    replace_atomically(output_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=2) + "\n"))
    plot_arms(arms, output_dir / "learning_curves.png")
    folder = output_dir / "pivottrace"
    console.print(
        f"Curves: {output_dir / 'learning_curves.png'}. Routes and traces: {folder / PRIVATE_FOLDER}. "
        f"What PivotTrace said: {folder / LOG_FILE}",
        markup=False,
        soft_wrap=True,
    )
