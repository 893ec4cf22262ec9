"""What a score is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ..traces import ResponseTrace


@runtime_checkable
class Estimator(Protocol):
    """
    A label-free uncertainty score: one number a prompt, from the trace of one response. Higher = less sure.

    Any object with these two methods can be passed to [`PivotDensityCallback`] as `estimator`. Estimators are values:
    `fit` returns a new one, so that a score keeps its meaning from epoch to epoch, and each trace is scored by itself,
    since training traces a few responses at a time. What `fit` finds is kept in attributes that JSON can hold, so that
    checkpoints can.
    """

    def fit(self, traces: Sequence[ResponseTrace]) -> "Estimator":
        """Return the estimator with whatever it needs to know of the pool (a threshold, say)."""
        ...

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return one score a trace, shape `(num_traces,)`; NaN where there is nothing to score (empty response)."""
        ...
