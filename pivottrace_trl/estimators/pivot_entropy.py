"""Pivots weighted by the model's hesitation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pivots import find_pivots
from ..traces import ResponseTrace
from .base import fit_threshold, fitted_threshold


@dataclass(frozen=True)
class PivotEntropy:
    """
    Entropy in nats summed over the pivots of a response: weighs the tokens where the model both moves its attention
    and hesitates. This weighting is ours; it is not in arXiv 2606.04503.

    Args:
        quantile (`float`, *optional*, defaults to `0.8`):
            Share of the pool's jumps that are not pivots.
        threshold (`float`, *optional*):
            Size a jump must exceed; set by `fit`.
    """

    quantile: float = 0.8
    threshold: float | None = None

    def fit(self, traces: Sequence[ResponseTrace]) -> "PivotEntropy":
        """Set the threshold to the quantile of the jumps of all `traces`."""
        return fit_threshold(self, traces)

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return the summed entropy for each trace, shape `(num_traces,)`, in nats; NaN for an empty response."""
        threshold = fitted_threshold(self)
        return np.array(
            [
                trace.entropy[find_pivots(trace.long_range_mass, threshold)].sum() if len(trace) else np.nan
                for trace in traces
            ]
        )
