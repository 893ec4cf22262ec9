"""Routing state beside a checkpoint: scalars as JSON, one row a prompt as Parquet. No pickle."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from .collapse import CollapseMonitor
from .files import replace_atomically
from .pool import pool_fingerprint
from .routing import PoolRouter
from .scoring import PoolScorer


logger = logging.get_logger(__name__)

_NOT_SAVED = (
    "What {name} learnt of the pool cannot be saved, as its attributes are no plain values: keep what `fit` finds in "
    "Python's own numbers, strings, lists and dictionaries."
)
_JSON, _PARQUET = "pivottrace.json", "pivottrace.parquet"


def save_state(
    checkpoint: Path,
    router: PoolRouter,
    scorer: PoolScorer,
    monitor: CollapseMonitor,
    num_prompts: int,
    epoch: int,
) -> None:
    """
    Save what the next routing and the sampler need.

    Args:
        checkpoint (`Path`): checkpoint folder.
        router ([`PoolRouter`]): scores, evidence, routes.
        scorer ([`PoolScorer`]): heads and thresholds.
        monitor ([`CollapseMonitor`]): what it compares.
        num_prompts (`int`): prompts an epoch.
        epoch (`int`): epoch that the routes are for.
    """
    state = {
        "pool_id": pool_fingerprint(router.prompt_ids),
        "num_prompts": num_prompts,
        "epoch": epoch,
        "probes": router.probes.tolist(),
        "heads": {str(layer): heads for layer, heads in (scorer.heads or {}).items()},
        "density": asdict(scorer.density),
        "estimator": _values(scorer.estimator),
        "calibrated_on": scorer.probes,
        "monitor": monitor.state(),
    }
    if state["estimator"]["values"] is None:
        logger.warning_once(_NOT_SAVED.format(name=state["estimator"]["name"]) + " This run cannot be resumed.")
    columns = {
        "prompt_id": router.prompt_ids,
        "route": router.routes,
        "score": router.scores,
        "pivot_density": router.densities,
        "pass_rate": router.evidence.pass_rate,
        "num_verified": router.evidence.num_verified,
        "agreement": router.evidence.agreement,
    }
    replace_atomically(checkpoint / _PARQUET, lambda path: pq.write_table(pa.table(columns), path))
    replace_atomically(checkpoint / _JSON, lambda path: path.write_text(json.dumps(state)))


def load_state(checkpoint: Path, router: PoolRouter, scorer: PoolScorer, monitor: CollapseMonitor) -> tuple[int, int]:
    """
    Put a saved state back into fresh objects.

    Args:
        checkpoint (`Path`): checkpoint folder.
        router ([`PoolRouter`]): takes scores, evidence, routes; which labels were bought is read from its ledger.
        scorer ([`PoolScorer`]): takes heads and thresholds.
        monitor ([`CollapseMonitor`]): takes what it compares.

    Returns:
        `tuple[int, int]`: prompts an epoch, and the epoch that the routes are for.

    Raises:
        FileNotFoundError: if the checkpoint holds no routing state.
        ValueError: if it belongs to another pool or estimator, or an estimator whose attributes are no plain values.
    """
    if not (checkpoint / _JSON).is_file():
        raise FileNotFoundError(
            f"{checkpoint} holds no {_JSON}: it was saved without a PivotDensityCallback. Resume without the "
            "callback, or start a new run from its weights."
        )
    state = json.loads((checkpoint / _JSON).read_text())
    if state["pool_id"] != pool_fingerprint(router.prompt_ids):
        raise ValueError(
            f"{checkpoint} was saved for pool {state['pool_id']}, but this one is "
            f"{pool_fingerprint(router.prompt_ids)}. Resume with the dataset of that run."
        )
    name = type(scorer.estimator).__name__
    if state["estimator"]["name"] != name:
        raise ValueError(
            f"{checkpoint} was scored by {state['estimator']['name']}, but `estimator` is {name}. Resume with the "
            "same one."
        )
    table = pq.read_table(checkpoint / _PARQUET)
    saved = {identity: row for row, identity in enumerate(table["prompt_id"].to_pylist())}
    order = np.array([saved[identity] for identity in router.prompt_ids])

    def column(name: str) -> np.ndarray:
        return table[name].to_numpy()[order]

    router.routes = column("route").astype(np.int8)
    router.scores, router.densities = column("score").copy(), column("pivot_density").copy()
    router.evidence.pass_rate[:] = column("pass_rate")
    router.evidence.num_verified[:] = column("num_verified")
    router.evidence.agreement[:] = column("agreement")
    router.evidence.is_labelled[:] = [router.ledger.label(i) is not None for i in router.prompt_ids]
    position = {row: place for place, row in enumerate(order)}
    router.probes = np.array([position[row] for row in state["probes"]], int)
    scorer.heads = {int(layer): heads for layer, heads in state["heads"].items()}
    scorer.probes = [int(position[row]) for row in state["calibrated_on"]]
    scorer.density = replace(scorer.density, **state["density"])
    if state["estimator"]["values"] is None:
        raise ValueError(_NOT_SAVED.format(name=name) + f" {checkpoint} therefore lacks it; start a new run.")
    scorer.estimator, scorer.is_fitted = copy.copy(scorer.estimator), True
    vars(scorer.estimator).update(state["estimator"]["values"])
    monitor.load_state(state["monitor"])
    return state["num_prompts"], state["epoch"]


def _values(estimator: object) -> dict[str, Any]:
    values: dict[str, Any] | None
    values = dict(vars(estimator)) if hasattr(estimator, "__dict__") else {}
    try:
        json.dumps(values)
    except TypeError:
        values = None
    return {"name": type(estimator).__name__, "values": values}
