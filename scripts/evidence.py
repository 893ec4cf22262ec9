"""
Run the experiments of a plan in order of worth, each in a process of one thread; what is in its summary is left out.

    python scripts/evidence.py docs/results/reproduction/tuning-plan.json --output work --jobs 2

It may be ended at any time: the same command goes on with the run that was cut off. Every finished run adds a line to
the summary beside the plan (`tuning.jsonl`): what `reproduce_annotation_efficiency.py --summary` says, the commit, the
machine, and the processor time. So that no run mixes two versions of the code, the checkout must be clean; keep one
for the runs, such as `git worktree add ../runs`.

A plan is a JSON file with `options` for the example, and `blocks` of `testbeds` (`chains:0.6/1024`: share of easy
prompts and size of the pool), `arms` and `seeds`; a block runs seed by seed, so that what is there is always paired.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from pivottrace_trl.report.record import describe_environment


ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "reproduce_annotation_efficiency.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_RUNNING: set[int] = set()


class Run(NamedTuple):
    """One experiment."""

    testbed: str
    arm: str
    seed: int


def planned(plan: dict[str, Any]) -> Iterator[Run]:
    """The runs of a plan, each once, the most worth first."""
    runs = (
        Run(testbed, arm, seed)
        for block in plan["blocks"]
        for seed in block["seeds"]
        for testbed in block["testbeds"]
        for arm in block["arms"]
    )
    yield from dict.fromkeys(runs)


def finished(summary: Path) -> set[Run]:
    """The runs that a summary has a line of."""
    lines = summary.read_text().splitlines() if summary.is_file() else []
    return {Run(line["testbed"], line["arm"], line["seed"]) for line in map(json.loads, lines)}


def commit_of(root: Path) -> str:
    """The commit that is checked out; `SystemExit` where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "pivottrace_trl", "examples", "scripts")
    if changed:
        raise SystemExit(f"Commit these changes first, or run from a clean checkout of its own:\n{changed}")
    return git("rev-parse", "HEAD").strip()


def execute(run: Run, options: Sequence[str], output: Path) -> dict[str, Any]:
    """The line of a run, made now; `RuntimeError` if the example fails."""
    train, _, pool_size = run.testbed.partition("/")
    folder = output / run.testbed.replace("/", "-").replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{run.arm}-{run.seed}"
    line, log = folder / f"{name}.json", folder / f"{name}.log"
    line.unlink(missing_ok=True)
    command = [sys.executable, str(EXAMPLE), "--train", train, "--pool-size", pool_size, "--output", str(folder)]
    command += ["--arms", run.arm, "--seeds", str(run.seed), "--summary", str(line), *options]
    # A record without a line is of a run whose line was lost.
    (folder / run.arm / f"seed-{run.seed}" / "run.json").unlink(missing_ok=True)
    with log.open("w") as file:
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _RUNNING.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        _RUNNING.discard(process.pid)
    if status != 0 or not line.is_file():
        raise RuntimeError(f"{run} failed, see {log}")
    return json.loads(line.read_text()) | {"cpu_seconds": round(usage.ru_utime + usage.ru_stime)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="the plan's JSON file")
    parser.add_argument("--output", type=Path, required=True, help="folder for the work files, outside the repository")
    parser.add_argument("--summary", type=Path, help="JSON Lines file (default: beside the plan, without `-plan`)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, so that no run is left behind
    plan = json.loads(args.plan.read_text())
    summary = args.summary or args.plan.with_name(args.plan.stem.removesuffix("-plan") + ".jsonl")
    facts = {"commit": commit_of(ROOT), "machine": describe_environment()["device"]}
    every, done = list(planned(plan)), finished(summary)
    todo = [run for run in every if run not in done]
    print(f"{len(every) - len(todo)} of {len(every)} runs are finished.", flush=True)
    failures = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(execute, run, plan["options"], args.output): run for run in todo}
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                try:
                    line = job.result() | facts
                except RuntimeError as error:
                    failures += 1
                    print(error, flush=True)
                    continue
                with summary.open("ab", buffering=0) as file:
                    file.write((json.dumps(line) + "\n").encode())
                said = f"{number} of {len(todo)}: {line['testbed']} {line['arm']} {line['seed']}"
                print(f"{said}: {line['final_accuracy']:.1%}, {line['cpu_seconds']} s", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for pid in [*_RUNNING]:
                os.kill(pid, signal.SIGKILL)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
