"""Routing state beside a checkpoint: scalars as JSON, one row a prompt as Parquet. No pickle."""

import copy
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..files import reading, replace_atomically
from ..pool import pool_fingerprint
from ..routing.collapse import CollapseMonitor
from ..routing.router import PoolRouter
from ..scoring.scorer import PoolScorer


logger = logging.get_logger(__name__)

_NOT_SAVED = (
    "What {name} learnt of the pool cannot be saved, as its attributes are no plain values: keep what `fit` finds in "
    "Python's own numbers, strings, lists and dictionaries."
)
_DAMAGED = "It is damaged: resume from another checkpoint."
_FORMAT = 3
_JSON, _PARQUET = "pivottrace.json", "pivottrace.parquet"


@dataclass(frozen=True)
class Position:
    """
    Where a run is.

    Attributes:
        seed (`int`): its seed.
        epoch (`int`): epoch that the routes are for.
        num_prompts (`int`): prompts an epoch.
        num_scoring_tokens (`int`): tokens spent on scoring.
        first_look (`str`): identifies the first responses to the pool, by which labels that are bought later are
            verified.
        gate (`dict[str, Any]`): what spoke for and against buying labels.
    """

    seed: int
    epoch: int
    num_prompts: int
    num_scoring_tokens: int
    first_look: str
    gate: dict[str, Any] = field(default_factory=dict)


def is_complete(checkpoint: Path) -> bool:
    """
    Whether a checkpoint was saved to its end: the trainer's own state is written after everything else, and ours
    before it.

    Args:
        checkpoint (`Path`): checkpoint folder.

    Returns:
        `bool`
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True


def find_checkpoint(output_dir: Path, resume_from: str | bool | None) -> Path | None:
    """
    Find the checkpoint to resume from.

    Args:
        output_dir (`Path`): folder of the run.
        resume_from (`str` or `bool`, *optional*): a checkpoint folder; `True` for the newest that is complete.

    Returns:
        `Path`; `None` if nothing is to be resumed, or the run was killed before its first checkpoint was complete.

    Raises:
        ValueError: if there is no checkpoint, or the one that is named was cut short while it was being saved.
    """
    if not resume_from:
        return None
    if resume_from is not True:
        checkpoint = Path(resume_from)
        if checkpoint.is_dir() and not is_complete(checkpoint):
            raise ValueError(
                f"{checkpoint} was cut short while it was being saved. Resume with `resume_from_checkpoint=True`, "
                "which takes the newest complete one."
            )
        return checkpoint
    numbered = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    newest_first = sorted(numbered, key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for checkpoint in newest_first:
        if is_complete(checkpoint):
            return checkpoint
    if not numbered:
        raise ValueError(f"{output_dir} holds no checkpoint. Start without `resume_from_checkpoint`.")
    logger.warning(
        f"No checkpoint in {output_dir} was saved to its end: training starts from the beginning. What was scored and "
        "labelled before is used again."
    )
    return None


def save_state(
    checkpoint: Path,
    router: PoolRouter,
    scorer: PoolScorer,
    monitor: CollapseMonitor,
    position: Position,
) -> None:
    """
    Save what the next routing and the sampler need: numbers and no texts, since a checkpoint may go to the hub.

    Args:
        checkpoint (`Path`): checkpoint folder.
        router ([`PoolRouter`]): scores, evidence, routes.
        scorer ([`PoolScorer`]): heads and thresholds.
        monitor ([`CollapseMonitor`]): what it compares.
        position ([`Position`]): where the run is.
    """
    state = {
        "format": _FORMAT,
        "pool_id": pool_fingerprint(router.prompt_ids),
        **asdict(position),
        "start": router.start,
        "probes": router.probes.tolist(),
        "heads": {str(layer): heads for layer, heads in (scorer.heads or {}).items()},
        "density": asdict(scorer.density),
        "estimator": _values(scorer.estimator),
        "calibrated_on": scorer.probes,
        "monitor": monitor.state(),
        "num_examined": router.num_examined,
    }
    if state["estimator"]["values"] is None:
        logger.warning_once(_NOT_SAVED.format(name=state["estimator"]["name"]) + " This run cannot be resumed.")
    columns = {
        "prompt_id": router.prompt_ids,
        "route": router.routes,
        "score": router.scores,
        "pivot_density": router.densities,
        "is_traced": router.is_traced,
        "pass_rate": router.evidence.pass_rate,
        "num_verified": router.evidence.num_verified,
        "agreement": router.evidence.agreement,
    }
    # A checkpoint that is saved again must not look complete by what is left of the last time.
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    replace_atomically(checkpoint / _PARQUET, lambda path: pq.write_table(pa.table(columns), path))
    replace_atomically(checkpoint / _JSON, lambda path: path.write_text(json.dumps(state)))


def load_state(
    checkpoint: Path, router: PoolRouter, scorer: PoolScorer, monitor: CollapseMonitor, seed: int
) -> Position:
    """
    Put a saved state back into fresh objects.

    Args:
        checkpoint (`Path`): checkpoint folder.
        router ([`PoolRouter`]): takes scores, evidence, routes; which labels were bought is read from its ledger.
        scorer ([`PoolScorer`]): takes heads and thresholds.
        monitor ([`CollapseMonitor`]): takes what it compares.
        seed (`int`): seed of the run that resumes.

    Returns:
        [`Position`]

    Raises:
        FileNotFoundError: if the checkpoint holds no routing state.
        ValueError: if it is damaged, belongs to another pool, seed or estimator, or an estimator whose attributes are
            no plain values.
    """
    if not (checkpoint / _JSON).is_file():
        raise FileNotFoundError(
            f"{checkpoint} holds no {_JSON}: it was saved without a PivotDensityCallback. Resume without the "
            "callback, or start a new run from its weights."
        )
    with reading(checkpoint / _JSON, _DAMAGED):
        state = dict(json.loads((checkpoint / _JSON).read_text()))
    if state.get("format") != _FORMAT:
        raise ValueError(
            f"{checkpoint} has routing state of format {state.get('format')}, but this release reads {_FORMAT}. "
            "Resume with the release of pivottrace-trl that saved it."
        )
    with reading(checkpoint / _JSON, _DAMAGED):
        pool_id, saved_seed = state["pool_id"], state["seed"]
        saved_name, values = state["estimator"]["name"], state["estimator"]["values"]
    if pool_id != pool_fingerprint(router.prompt_ids):
        raise ValueError(
            f"{checkpoint} was saved for pool {pool_id}, but this one is "
            f"{pool_fingerprint(router.prompt_ids)}. Resume with the dataset of that run."
        )
    if saved_seed != seed:
        raise ValueError(
            f"{checkpoint} was saved by a run with seed {saved_seed}, but this one has seed {seed}, which orders "
            f"the prompts differently. Resume with `seed={saved_seed}`."
        )
    name = type(scorer.estimator).__name__
    if saved_name != name:
        raise ValueError(
            f"{checkpoint} was scored by {saved_name}, but `estimator` is {name}. Resume with the same one."
        )
    if values is None:
        raise ValueError(_NOT_SAVED.format(name=name) + f" {checkpoint} therefore lacks it; start a new run.")
    with reading(checkpoint, _DAMAGED):
        table = pq.read_table(checkpoint / _PARQUET)
        saved_ids = table["prompt_id"].to_pylist()
    # The order of prompts and the first responses go by rows.
    if saved_ids != router.prompt_ids:
        raise ValueError(
            f"{checkpoint} was saved with the same prompts in another order. Shuffle with the seed of that run, or "
            f"sort the rows as the column `prompt_id` of {checkpoint / _PARQUET} has them."
        )
    with reading(checkpoint, _DAMAGED):
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "prompt_id"}
        router.routes = columns["route"].astype(np.int8)
        router.scores, router.densities = columns["score"].copy(), columns["pivot_density"].copy()
        router.is_traced = columns["is_traced"].copy()
        router.evidence.pass_rate[:] = columns["pass_rate"]
        router.evidence.num_verified[:] = columns["num_verified"]
        router.evidence.agreement[:] = columns["agreement"]
        router.start = state["start"]
        router.know_labels(state["epoch"])
        router.probes = np.array(state["probes"], int)
        scorer.heads = {int(layer): heads for layer, heads in state["heads"].items()}
        scorer.probes = list(state["calibrated_on"])
        scorer.density = replace(scorer.density, **state["density"])
        scorer.estimator, scorer.is_fitted = copy.copy(scorer.estimator), True
        vars(scorer.estimator).update(values)
        monitor.load_state(state["monitor"])
        router.num_examined = state["num_examined"]
        return Position(**{entry.name: state[entry.name] for entry in fields(Position)})


def save_suggestions(path: Path, router: PoolRouter) -> None:
    """
    Save the policy's own answers, for the people who are asked later.

    Args:
        path (`Path`): file in the private folder.
        router ([`PoolRouter`]): has them.
    """
    rows = sorted(router.suggestions)
    columns = {
        "prompt_id": pa.array([router.prompt_ids[row] for row in rows], pa.string()),
        "answer": pa.array([router.suggestions[row] for row in rows], pa.string()),
    }
    replace_atomically(path, lambda temporary: pq.write_table(pa.table(columns), temporary))


def load_suggestions(path: Path, router: PoolRouter) -> None:
    """
    Put saved answers of the policy back; those of the latest save, whichever checkpoint is resumed.

    Args:
        path (`Path`): file in the private folder. Without it there are none.
        router ([`PoolRouter`]): takes them.

    Raises:
        ValueError: if it is damaged.
    """
    if not path.is_file():
        return
    with reading(path, "It is damaged: remove it. The people who are asked then see no suggestions at first."):
        table = pq.read_table(path)
        answers = dict(zip(table["prompt_id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    router.suggestions = {row: answers[name] for row, name in enumerate(router.prompt_ids) if name in answers}


def _values(estimator: object) -> dict[str, Any]:
    values: dict[str, Any] | None
    values = dict(vars(estimator)) if hasattr(estimator, "__dict__") else {}
    try:
        json.dumps(values)
    except TypeError:
        values = None
    return {"name": type(estimator).__name__, "values": values}
