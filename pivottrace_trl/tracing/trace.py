"""The trace of a response, and tables of traces, so that responses need not pass through the model again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import reading, write_parquet


@dataclass(frozen=True)
class ResponseTrace:
    """
    Signals of one rollout, with one number per response token. Entry `t` belongs to the position that produced
    response token `t`. Arrays are float32. The fields from `self_certainty` on are `None` unless a score needs them.

    Attributes:
        long_range_mass (`np.ndarray` of shape `(num_tokens,)`):
            Attention probability at or beyond the long-range window, averaged over the traced heads, in `[0, 1]`.
        waad (`np.ndarray` of shape `(num_tokens,)`):
            Windowed average attention distance in tokens (arXiv 2510.13554), averaged over the traced heads.
        entropy (`np.ndarray` of shape `(num_tokens,)`):
            Entropy in nats of the distribution from which the token was drawn.
        log_prob (`np.ndarray` of shape `(num_tokens,)`):
            Log-probability of the token in nats.
        self_certainty (`np.ndarray` of shape `(num_tokens,)`):
            Divergence in nats of the uniform distribution from the model's, see [`TokenStatistics`].
        newest (`np.ndarray` of shape `(num_layers, num_tokens)`):
            Attention on the newest token while the next one is produced, for each layer of the middle third, from the
            head that attends to it most in this response (RAUQ, arXiv 2505.20045).
        layer_gram (`np.ndarray` of shape `(num_layers + 1, num_layers + 1)`, float64):
            Inner products between the hidden states of the layers, averaged over the response, from the embeddings to
            the last layer (normalised). They determine all lengths and angles of the path through the layers.
        agreement (`float`):
            Share of several responses to the prompt that give the majority answer, in `[0, 1]`.
    """

    long_range_mass: np.ndarray
    waad: np.ndarray
    entropy: np.ndarray
    log_prob: np.ndarray
    self_certainty: np.ndarray | None = None
    newest: np.ndarray | None = None
    layer_gram: np.ndarray | None = None
    agreement: float | None = None

    def __len__(self) -> int:
        return len(self.long_range_mass)

    def read(self, name: str) -> Any:
        """
        Read an optional field.

        Args:
            name (`str`): one of [`OPTIONAL_SIGNALS`].

        Returns:
            `np.ndarray` or `float`: value of the field.

        Raises:
            ValueError: if the field was not traced.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"`{name}` was not traced. A score that reads it names it in `needs`; `trace_rollouts` takes it in "
                "`signals`."
            )
        return value


OPTIONAL_SIGNALS = frozenset({"self_certainty", "newest", "layer_gram", "agreement"})
"""Fields of [`ResponseTrace`] that are traced only if a score needs them."""

_PER_TOKEN = pa.list_(pa.float32())
_COLUMNS = {
    "long_range_mass": _PER_TOKEN,
    "waad": _PER_TOKEN,
    "entropy": _PER_TOKEN,
    "log_prob": _PER_TOKEN,
    "self_certainty": _PER_TOKEN,
    "newest": pa.list_(_PER_TOKEN),
    "layer_gram": pa.list_(pa.list_(pa.float64())),
}


def traces_to_table(traces: Sequence[ResponseTrace], prompt_ids: Sequence[str] | None = None) -> pa.Table:
    """
    Put traces into a table with one row per trace. It has a column for every field that any trace has, and one for the
    prompt ids, if given. `agreement` is left out, as it belongs to several responses.
    """
    columns = {} if prompt_ids is None else {"prompt_id": pa.array(prompt_ids, pa.string())}
    for name, column_type in _COLUMNS.items():
        values = [getattr(trace, name) for trace in traces]
        if any(value is not None for value in values):
            # Arrow takes one-dimensional arrays, and lists of them.
            columns[name] = pa.array([list(v) if np.ndim(v) == 2 else v for v in values], column_type)
    return pa.table(columns)


def traces_from_table(table: pa.Table) -> list[ResponseTrace]:
    """Read traces from a table of [`traces_to_table`]. Their arrays are views of the table."""
    columns = {name: table[name].to_numpy() for name in _COLUMNS if name in table.column_names}
    rows = zip(*columns.values(), strict=True)
    return [ResponseTrace(**{name: _dense(value) for name, value in zip(columns, row, strict=True)}) for row in rows]


def _dense(value: Any) -> Any:
    """Convert an array of rows, as Arrow returns a matrix, to a two-dimensional array."""
    return np.stack(list(value)) if value is not None and value.dtype == object else value


def save_traces(traces: Sequence[ResponseTrace], path: Path, prompt_ids: Sequence[str] | None = None) -> None:
    """Write [`traces_to_table`] as a Parquet file."""
    write_parquet(path, traces_to_table(traces, prompt_ids))


def load_traces(path: Path) -> list[ResponseTrace]:
    """Read what [`save_traces`] wrote."""
    with reading(path, "Remove it, and the traces are made again."):
        return traces_from_table(pq.read_table(path))
