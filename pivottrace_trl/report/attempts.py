"""The policy's attempts with their pivots, for the people who answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from ..files import replace_atomically
from ..pivots import find_pivots
from ..rollouts import Rollout
from ..traces import ResponseTrace


def write_attempts(
    path: Path,
    prompt_ids: Sequence[str],
    rollouts: Sequence[Rollout],
    traces: Sequence[ResponseTrace],
    threshold: float,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """
    Write the text of each response and where its pivots stand in it.

    Args:
        path (`Path`): Parquet file.
        prompt_ids (`Sequence[str]`): id of each prompt.
        rollouts (`Sequence[Rollout]`): one response per prompt.
        traces (`Sequence[ResponseTrace]`): their traces.
        threshold (`float`): height of a jump that makes a pivot.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): turns tokens into text.
    """
    texts, starts, ends = [], [], []
    for rollout, trace in zip(rollouts, traces, strict=True):
        ids = rollout.completion_ids
        pivots = np.flatnonzero(find_pivots(trace.long_range_mass, threshold)).tolist() if len(trace) else []
        # The place of a token is the length of the text before it: tokens decoded one by one lose their spaces.
        prefixes = [ids[: place + step] for step in (0, 1) for place in pivots]
        lengths = [len(text) for text in tokenizer.batch_decode(prefixes)] if prefixes else []
        texts.append(tokenizer.decode(ids))
        starts.append(lengths[: len(pivots)])
        ends.append(lengths[len(pivots) :])
    spans = pa.list_(pa.int32())
    table = pa.table(
        {
            "prompt_id": list(prompt_ids),
            "text": texts,
            "pivot_start": pa.array(starts, spans),
            "pivot_end": pa.array(ends, spans),
        }
    )
    replace_atomically(path, lambda temporary: pq.write_table(table, temporary))
