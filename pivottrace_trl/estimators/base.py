"""What a score is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..pivots import pivot_threshold
from ..traces import ResponseTrace


T = TypeVar("T", bound=Any)


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


def fit_threshold(estimator: T, traces: Sequence[ResponseTrace]) -> T:
    """Set the `threshold` of an estimator that counts pivots to the `quantile` of the jumps of all `traces`."""
    signals = [trace.long_range_mass for trace in traces]
    return replace(estimator, threshold=pivot_threshold(signals, estimator.quantile))


def fitted_threshold(estimator: Any) -> float:
    """
    Return the `threshold` of an estimator that counts pivots.

    Raises:
        RuntimeError: if it was not fitted.
    """
    if estimator.threshold is None:
        name = type(estimator).__name__
        raise RuntimeError(f"`{name}` has no threshold yet: call `fit(traces)` and use what it returns.")
    return estimator.threshold
