"""Number of tokens at which the model hesitates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..traces import ResponseTrace


@dataclass(frozen=True)
class ForkingTokens:
    """
    Number of response tokens with high entropy, the "forking tokens" of arXiv 2506.01939. Needs no attention; the
    baseline that was hardest to beat so far.

    Args:
        min_entropy (`float`, *optional*, defaults to `0.5`):
            Entropy in nats that a token must exceed.
    """

    min_entropy: float = 0.5

    def fit(self, traces: Sequence[ResponseTrace]) -> "ForkingTokens":
        """Return itself: the bound is a fixed one."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return the number of forking tokens of each trace, shape `(num_traces,)`; NaN for an empty response."""
        return np.array(
            [(trace.entropy > self.min_entropy).sum() if len(trace) else np.nan for trace in traces], dtype=float
        )
