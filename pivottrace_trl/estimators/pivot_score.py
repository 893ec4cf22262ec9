"""What the scores that look at pivots share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from ..tracing.pivots import pivot_threshold
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
