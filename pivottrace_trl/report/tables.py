"""Tables for the terminal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..offline import PoolTriage
from ..routing.triage import Route, count_routes


def print_routings(routes: Mapping[int, np.ndarray]) -> None:
    """Print how many prompts each epoch of a training run had on each route."""
    table = Table(title="PivotTrace")
    for column in ("epoch", *(route.name.lower() for route in Route)):
        table.add_column(column, justify="right")
    for epoch, routes_of_epoch in routes.items():
        table.add_row(str(epoch), *(str(count) for count in count_routes(routes_of_epoch).values()))
    Console().print(table)


def print_triage(outcome: PoolTriage, output_dir: Path) -> None:
    """Print the routes of a triage, what its probes say, and what it took."""
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
            for values, digits in ((router.scores, 2), (router.densities, 3), (num_tokens, 0))
        ]
        table.add_row(route.name.lower(), str(count), f"{count / len(result.routes):.1%}", *means)
    console = Console()
    console.print(table)
    ledger, queue = router.ledger, output_dir / "queue.jsonl"
    if router.evidence.is_labelled.any():
        own = f"{len(ledger.own_ids)} labels of yours, " if ledger.own_ids else ""
        bought = f"{own}{ledger.num_bought} bought of a budget of {ledger.budget}"
        right = f"{np.nanmean(router.evidence.pass_rate):.0%} of the responses to these prompts are right"
        asked = f"{ledger.num_open} questions are in {queue}" if ledger.num_open else "Nothing is worth asking for now"
        console.print(f"Verified: {bought}; {right}. {asked}.", markup=False, soft_wrap=True)
    else:
        console.print(
            f"No label yet: nothing was verified, nothing is discarded. Answer the {len(router.probes)} probes at "
            f"the top of {queue} first.",
            markup=False,
            soft_wrap=True,
        )
    total = sum(outcome.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome.seconds.items())
    took = f"Took {total:.1f} s ({stages}); peak memory {outcome.peak_memory_gb:.1f} GiB."
    console.print(f"{took} Files: {output_dir}", markup=False, soft_wrap=True)
