"""Table and plots of a triage."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ..offline import PoolTriage
from ..routing.triage import Route
from .attempts import write_attempts
from .plots import plot_calibration, plot_scores


def plot_triage(outcome: PoolTriage, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> None:
    """
    Write `scores.png`, `calibration.png` if anything was verified, and the attempts for the desk.

    Args:
        outcome ([`PoolTriage`]): what [`triage_pool`] returned.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's tokenizer.
        output_dir (`Path`): where its files are.
    """
    router, scores = outcome.router, outcome.pool_scores
    plot_scores(scores.scores, scores.densities, outcome.result, output_dir / "scores.png")
    if np.isfinite(router.evidence.pass_rate).any():
        config, path = router.config, output_dir / "calibration.png"
        plot_calibration(outcome.result, router.evidence, config.tau_high, config.tau_low, path)
    path = output_dir / "attempts.parquet"
    write_attempts(path, router.prompt_ids, outcome.rollouts, scores.traces, outcome.pivot_threshold, tokenizer)


def print_triage(outcome: PoolTriage, output_dir: Path) -> None:
    """
    Print routes, thresholds, time and memory of a triage.

    Args:
        outcome ([`PoolTriage`]): what [`triage_pool`] returned.
        output_dir (`Path`): where its files are.
    """
    router, result = outcome.router, outcome.result
    table = Table(title=f"Triage of {len(result.routes)} prompts")
    for column in ("route", "prompts", "share", "mean score", "mean pivot density", "mean tokens"):
        table.add_column(column, justify="left" if column == "route" else "right")
    num_tokens = np.array([len(rollout.completion_ids) for rollout in outcome.rollouts])
    for route in Route:
        is_here = result.routes == route
        count = int(is_here.sum())
        means = [
            f"{np.nanmean(values[is_here]):.{digits}f}" if count else "-"
            for values, digits in (
                (outcome.pool_scores.scores, 2),
                (outcome.pool_scores.densities, 3),
                (num_tokens, 0),
            )
        ]
        table.add_row(route.name.lower(), str(count), f"{count / len(result.routes):.1%}", *means)
    console = Console()
    console.print(table)
    if router.ledger.num_bought:
        console.print(
            f"Probe set: {router.ledger.num_bought} labels of a budget of {router.ledger.budget}, "
            f"{np.nanmean(router.evidence.pass_rate):.0%} of the probed responses are right."
        )
    else:
        console.print(
            f"No label column: nothing was verified, nothing is discarded. Answer the {len(router.probes)} probes at "
            f"the top of {output_dir / 'queue.jsonl'} first."
        )
    total = sum(outcome.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome.seconds.items())
    console.print(f"Took {total:.1f} s ({stages}); peak memory {outcome.peak_memory_gb:.1f} GiB. Files: {output_dir}")
