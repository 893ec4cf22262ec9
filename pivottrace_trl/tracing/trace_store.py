"""Traces as tables, so that responses need not pass through the model again."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import reading, replace_atomically
from .trace import ResponseTrace


_PER_TOKEN = ("long_range_mass", "waad", "entropy", "log_prob", "self_certainty")
_FIELDS = (*_PER_TOKEN, "newest", "layer_gram")


def traces_to_table(traces: Sequence[ResponseTrace]) -> pa.Table:
    """
    Put traces into a table, one row each; a field that no trace has is left out, and so is `agreement`.

    Args:
        traces (`Sequence[ResponseTrace]`): traces of one pass; empty ones are kept as such.

    Returns:
        `pa.Table`: arrays are flattened; float32 but for `layer_gram`.
    """
    columns = {}
    for name in _FIELDS:
        if all(getattr(trace, name) is None for trace in traces):
            continue
        values = [getattr(t, name) if len(t) and getattr(t, name) is not None else np.zeros(0) for t in traces]
        type_ = pa.list_(pa.float64() if name == "layer_gram" else pa.float32())
        columns[name] = pa.array([value.ravel() for value in values], type_)
    return pa.table(columns)


def traces_from_table(table: pa.Table) -> list[ResponseTrace]:
    """
    Take traces out of a table that [`traces_to_table`] made.

    Args:
        table (`pa.Table`): the table.

    Returns:
        `list[ResponseTrace]`
    """
    traces = []
    for row in table.to_pylist():
        num_tokens = len(row["entropy"])
        signals: dict[str, Any] = {name: np.array(row[name], np.float32) for name in _PER_TOKEN if name in row}
        if num_tokens and "newest" in row:
            signals["newest"] = np.array(row["newest"], np.float32).reshape(-1, num_tokens)
        if num_tokens and "layer_gram" in row:
            gram = np.array(row["layer_gram"])
            signals["layer_gram"] = gram.reshape(round(len(gram) ** 0.5), -1)
        traces.append(ResponseTrace(**signals))
    return traces


def save_traces(traces: Sequence[ResponseTrace], path: Path) -> None:
    """
    Write traces as a Parquet file, see [`traces_to_table`].

    Args:
        traces (`Sequence[ResponseTrace]`): one per prompt.
        path (`Path`): Parquet file.
    """
    replace_atomically(path, partial(pq.write_table, traces_to_table(traces), compression="zstd"))


def load_traces(path: Path) -> list[ResponseTrace]:
    """
    Read what [`save_traces`] wrote.

    Args:
        path (`Path`): Parquet file.

    Returns:
        `list[ResponseTrace]`
    """
    with reading(path, "Remove it: the traces are made again."):
        return traces_from_table(pq.read_table(path))
