"""Mean entropy of the response tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..traces import ResponseTrace


@dataclass(frozen=True)
class MeanEntropy:
    """Mean over the response tokens of the entropy in nats: the usual baseline of uncertainty."""

    def fit(self, traces: Sequence[ResponseTrace]) -> "MeanEntropy":
        """Return itself: the mean needs no knowledge of the pool."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return the mean entropy of each trace in nats, shape `(num_traces,)`; NaN for an empty response."""
        return np.array([trace.entropy.mean() if len(trace) else np.nan for trace in traces], dtype=float)
