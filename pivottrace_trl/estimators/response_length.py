"""The baseline that every score must beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..traces import ResponseTrace


@dataclass(frozen=True)
class ResponseLength:
    """Number of response tokens: long answers tend to be unsure ones."""

    def fit(self, traces: Sequence[ResponseTrace]) -> "ResponseLength":
        """Return itself: length needs no knowledge of the pool."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return the length of each trace in tokens, shape `(num_traces,)`; NaN for an empty response."""
        return np.array([len(trace) or np.nan for trace in traces], dtype=float)
