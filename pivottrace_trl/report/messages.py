"""What a training run says when it is attached, and at its end: a few aligned lines each."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..routing.router import PoolRouter
from ..training.trainer_pool import TrainerPool


@dataclass(frozen=True)
class RunSetup:
    """
    How a run gets its labels, for people.

    Attributes:
        estimator (`str`): name of the score.
        asked (`str`): who is asked for labels.
        buy (`str`): `"before"` or `"after"` the rollouts.
        answers (`str`): name of the answer format.
        verifier (`str`): name of the reward function that tells which responses are right.
    """

    estimator: str
    asked: str
    buy: str
    answers: str
    verifier: str


def name_annotator(annotator: Any) -> str:
    """Who is asked for labels, in words."""
    if annotator is None:
        return "the dataset"
    if annotator == "queue":
        return "people, through the queue"
    if isinstance(annotator, Sequence):
        return ", then ".join(map(name_annotator, annotator))
    return f"`{getattr(annotator, '__name__', type(annotator).__name__)}`"


def describe_start(pool: TrainerPool, router: PoolRouter, setup: RunSetup, args: Any, survey: Path) -> str:
    """What a run found and what it does first; `args` are those of the trainer, `survey` holds first responses."""
    return "PivotTrace\n" + _align(_describe_start(pool, router, setup, args.max_completion_length, survey))


def _describe_start(
    pool: TrainerPool, router: PoolRouter, setup: RunSetup, max_completion_length: int, survey: Path
) -> Iterator[tuple[str, str]]:
    ledger, num, column = router.ledger, len(pool.ids), pool.columns.label
    hidden = [f"`{name}`" for name in (column, *pool.columns.locked) if name in pool.dataset.column_names]
    most = hidden if len(hidden) < 5 else [*hidden[:3], f"{len(hidden) - 3} others"]
    yield "Pool", f"{num:,} prompts; locked up: {', '.join(most) or 'nothing'}"
    if told := pool.describe_labels(setup.asked != "the dataset"):
        yield "Labels", told
    spent = f"; {ledger.num_bought:,} are bought already" if ledger.num_bought else ""
    # Labels of the user's own are not bought, and serve as probes first.
    num_own = 0 if setup.asked == "the dataset" else pool.vault.num_labels
    share = f"{ledger.budget / max(num - num_own, 1):.1%} of {'the others' if num_own else 'the pool'}"
    yield "Budget", f"{ledger.budget:,} labels ({share}), from {setup.asked}{spent}"
    if router.probe_size:
        yield "Probes", f"{router.probe_size:,}, " + ("your own labels first" if num_own else "part of the budget")
    yield "Answers", f"read as {setup.answers}; `{setup.verifier}` tells which are right"
    when = "at each routing" if setup.buy == "before" else "probes first, then for groups of rollouts"
    yield "Score", f"{setup.estimator}; labels are bought {when}"
    if survey.is_dir():
        yield "First", f"go on with the first responses in {survey}, where they fit"
    else:
        yield "First", f"answer all {num:,} prompts, in at most {max_completion_length:,} tokens each"


def describe_end(
    summary: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]], router: PoolRouter, output_dir: Path
) -> str:
    """What a run brought and what to look at next."""
    return _align(_describe_end(summary, log_history, router, output_dir))


def _describe_end(
    summary: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]], router: PoolRouter, output_dir: Path
) -> Iterator[tuple[str, str]]:
    ledger, run = router.ledger, shlex.quote(str(output_dir.parent))
    own = f", {len(ledger.own_ids):,} of your own besides" if ledger.own_ids else ""
    bought = f"{summary['annotated']:,} of {summary['annotation_budget']:,} bought"
    yield "Labels", f"{bought} for a pool of {summary['pool_size']:,} prompts{own}"
    logged = [entry.get("pivottrace/vote_accuracy") for entry in log_history]
    if known := [value for value in logged if value is not None]:
        yield "Votes", f"{np.mean(known):.0%} are right, where a label tells"
    if router.asks_people and ledger.num_open:
        yield "Queue", f"{ledger.num_open:,} questions are open: `pivottrace desk {run}` answers them"
    yield "Status", f"`pivottrace annotate status {run}` tells what labels cost and brought"
    yield "Report", f"`pivottrace report {run}` makes a page with curves, routes and calibration"
    yield "Pictures", f"{output_dir}: route_flow.png, calibration.png, scores.png, trace.png"
    yield "Ledger", f"{output_dir / 'ledger.sqlite'} holds every label that was bought: keep it"


def _align(lines: Iterator[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<10}{text}" for name, text in lines)
