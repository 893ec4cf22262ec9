"""What the scores that need no knowledge of the pool share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np

from ..tracing.trace import ResponseTrace


T = TypeVar("T", bound="SimpleScore")


class SimpleScore(ABC):
    """A score that looks at one response at a time and has nothing to fit."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self: T, traces: Sequence[ResponseTrace]) -> T:
        """Return itself: the score does not depend on the pool."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return one score a trace, shape `(num_traces,)`; NaN for an empty response."""
        return np.array([self.score(trace) if len(trace) else np.nan for trace in traces], dtype=float)

    @abstractmethod
    def score(self, trace: ResponseTrace) -> float:
        """Return the score of one response that is not empty."""
