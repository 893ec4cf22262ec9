"""Number of pivots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pivots import find_pivots
from ..traces import ResponseTrace
from .base import fit_threshold, fitted_threshold


@dataclass(frozen=True)
class PivotCount:
    """
    Number of pivots in a response (arXiv 2606.04503): how often long-range attention jumps; long answers count more.

    Args:
        quantile (`float`, *optional*, defaults to `0.8`):
            Share of the pool's jumps that are not pivots.
        threshold (`float`, *optional*):
            Size a jump must exceed; set by `fit`.
    """

    quantile: float = 0.8
    threshold: float | None = None

    def fit(self, traces: Sequence[ResponseTrace]) -> "PivotCount":
        """Set the threshold to the quantile of the jumps of all `traces`."""
        return fit_threshold(self, traces)

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return the number of pivots of each trace, shape `(num_traces,)`; NaN for an empty response."""
        threshold = fitted_threshold(self)
        return np.array(
            [find_pivots(trace.long_range_mass, threshold).sum() if len(trace) else np.nan for trace in traces],
            dtype=float,
        )
