"""The routes of a run as files, one table per routing."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import reading, write_parquet
from .triage import Route, TriageResult


if TYPE_CHECKING:  # reading tables must not wait for the imports that making them needs
    from .router import PoolRouter


def write_routes(folder: Path, epoch: int, router: "PoolRouter", result: TriageResult) -> None:
    """
    Write the routes of an epoch, with the scores and evidence behind them. `answer` is the policy's own answer at that
    time; if there was a group, its majority answer.
    """
    columns = {
        "prompt_id": router.prompt_ids,
        "route": np.array([route.name.lower() for route in Route])[result.routes],
        "score": router.scores,
        "pivot_density": router.densities,
        "is_probe": np.isin(np.arange(len(router.prompt_ids)), router.probes),
        "is_labelled": router.evidence.is_labelled,
        "pass_rate": router.evidence.pass_rate,
        "agreement": router.evidence.agreement,
        "answer": pa.array([router.suggestions.get(row) for row in range(len(router.prompt_ids))], pa.string()),
    }
    write_parquet(folder / f"routes-epoch-{epoch:03d}.parquet", columns)


def find_routes(folder: Path) -> dict[int, Path]:
    """The tables of routes in a folder, by epoch."""
    paths = sorted(folder.glob("routes-epoch-*.parquet"))
    return {int(path.stem.removeprefix("routes-epoch-")): path for path in paths}


def read_routes(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Routes, scores and pass rates of one routing, each of shape `(num_prompts,)`."""
    with reading(path, "It is no table of routes: remove it, or run again."):
        table = pq.read_table(path, columns=["route", "score", "pass_rate"]).to_pydict()
        routes = np.array([Route[name.upper()] for name in table["route"]], np.int8)
        return routes, np.array(table["score"], float), np.array(table["pass_rate"], float)
