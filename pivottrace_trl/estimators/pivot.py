"""Scores from the jumps of long-range attention (arXiv 2606.04503)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ..tracing.pivots import find_pivots, pivot_threshold
from ..tracing.trace import ResponseTrace
from .base import Score


T = TypeVar("T", bound="PivotScore")


@dataclass(frozen=True)
class PivotScore(Score):
    """
    Base class of scores from the pivots of a response (arXiv 2606.04503), the tokens where long-range attention jumps.
    The size that a jump must exceed is determined once for the pool.

    Args:
        quantile (`float`, *optional*, defaults to `0.8`):
            Share of the pool's jumps that are not pivots, in `(0, 1)`.
        threshold (`float`, *optional*):
            Size that a jump must exceed, in attention probability; set by `fit`.
    """

    quantile: float = 0.8
    threshold: float | None = None

    def fit(self: T, traces: Sequence[ResponseTrace]) -> T:
        """Return the score with the threshold set to the quantile of the jumps of all `traces`."""
        return replace(self, threshold=pivot_threshold([trace.long_range_mass for trace in traces], self.quantile))

    def pivots(self, trace: ResponseTrace) -> np.ndarray:
        """
        Mark the tokens of a response that are pivots.

        Returns:
            `np.ndarray` of shape `(num_tokens,)`, bool.

        Raises:
            RuntimeError: if the score was not fitted.
        """
        if self.threshold is None:
            name = type(self).__name__
            raise RuntimeError(f"`{name}` has no threshold yet: call `fit(traces)` and use what it returns.")
        return find_pivots(trace.long_range_mass, self.threshold)


class PivotCount(PivotScore):
    """Number of pivots in a response, that is, of jumps of long-range attention. Long answers have more."""

    name = "pivot_count"

    def score(self, trace: ResponseTrace) -> float:
        """Return the number of pivots."""
        return float(self.pivots(trace).sum())


class PivotDensity(PivotScore):
    """Pivots per response token, that is, how often long-range attention jumps while the model answers."""

    name = "pivot_density"

    def score(self, trace: ResponseTrace) -> float:
        """Return pivots per token, in `[0, 1]`."""
        # A signal of NaN has no jumps, which must not look like certainty.
        return float(self.pivots(trace).mean()) if np.isfinite(trace.long_range_mass).all() else np.nan


class PivotEntropy(PivotScore):
    """
    Sum of the entropy over the pivots of a response, in nats. It counts the tokens where the model both moves its
    attention and hesitates. This weighting is ours; it is not in arXiv 2606.04503.
    """

    name = "pivot_entropy"

    def score(self, trace: ResponseTrace) -> float:
        """Return the summed entropy in nats."""
        return float(trace.entropy[self.pivots(trace)].sum())
