"""What the jumps of long-range attention say (arXiv 2606.04503)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from ..tracing.pivots import find_pivots, pivot_density, pivot_threshold
from ..tracing.trace import ResponseTrace


T = TypeVar("T", bound="PivotScore")


@dataclass(frozen=True)
class PivotScore(ABC):
    """
    A score made from the pivots of a response (arXiv 2606.04503), the places where long-range attention jumps. The
    size that a jump must exceed is found once for the pool.

    Args:
        quantile (`float`, *optional*, defaults to `0.8`):
            Share of the pool's jumps that are not pivots.
        threshold (`float`, *optional*):
            Size a jump must exceed, in attention probability; set by `fit`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    quantile: float = 0.8
    threshold: float | None = None

    def fit(self: T, traces: Sequence[ResponseTrace]) -> T:
        """Return the score with the threshold set to the quantile of the jumps of all `traces`."""
        return replace(self, threshold=pivot_threshold([trace.long_range_mass for trace in traces], self.quantile))

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return one score a trace, shape `(num_traces,)`; NaN for an empty response."""
        if self.threshold is None:
            name = type(self).__name__
            raise RuntimeError(f"`{name}` has no threshold yet: call `fit(traces)` and use what it returns.")
        scores = [self.score(trace, self.threshold) if len(trace) else np.nan for trace in traces]
        return np.array(scores, dtype=float)

    @abstractmethod
    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return the score of one response that is not empty."""


class PivotCount(PivotScore):
    """Number of pivots in a response: how often long-range attention jumps; long answers count more."""

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return the number of pivots."""
        return float(find_pivots(trace.long_range_mass, threshold).sum())


class PivotDensity(PivotScore):
    """Pivots per response token: how often long-range attention jumps while the model answers."""

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return pivots per token, in `[0, 1]`."""
        return pivot_density(trace.long_range_mass, threshold)


class PivotEntropy(PivotScore):
    """
    Entropy in nats summed over the pivots of a response: weighs the tokens where the model both moves its attention
    and hesitates. This weighting is ours; it is not in arXiv 2606.04503.
    """

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return the summed entropy in nats."""
        return float(trace.entropy[find_pivots(trace.long_range_mass, threshold)].sum())
