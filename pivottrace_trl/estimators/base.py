"""The interface of scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..tracing.trace import ResponseTrace


T = TypeVar("T", bound="Score")


@runtime_checkable
class Estimator(Protocol):
    """
    A label-free uncertainty score: one number per prompt, from the trace of one response. Higher = less sure.

    Any dataclass with these members can be passed to [`PivotDensityCallback`] as `estimator`. Estimators are
    immutable: `fit` returns a new one, so that a score keeps its meaning from epoch to epoch. Each trace is scored
    independently, since training traces a few responses at a time. What `fit` finds must be stored in fields of the
    dataclass, as values that JSON can represent, since they go into checkpoints and to other processes.

    Attributes:
        needs (`frozenset[str]`):
            The optional fields of [`ResponseTrace`] that the score reads, which are then traced. Empty for a score
            that only reads long-range attention, entropy and log-probability.
    """

    needs: ClassVar[frozenset[str]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fit(self, traces: Sequence[ResponseTrace]) -> "Estimator":
        """
        Fit the score to a pool, by choosing a threshold for example.

        Args:
            traces (`Sequence[ResponseTrace]`): one trace per prompt of the pool.

        Returns:
            [`Estimator`]: a new, fitted estimator; or itself, if there is nothing to fit.
        """
        ...

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """
        Score responses.

        Args:
            traces (`Sequence[ResponseTrace]`): one trace per response.

        Returns:
            `np.ndarray` of shape `(num_traces,)`, float: higher = less sure; NaN for an empty response.
        """
        ...


@runtime_checkable
class CalibratedEstimator(Estimator, Protocol):
    """An [`Estimator`] that learns from the labels of the probe set which responses are wrong."""

    def calibrate(self, traces: Sequence[ResponseTrace], was_right: np.ndarray) -> "CalibratedEstimator":
        """
        Return the estimator, fitted to the labels of the probe set.

        Args:
            traces (`Sequence[ResponseTrace]`): one trace per probe.
            was_right (`np.ndarray` of shape `(num_probes,)`, bool): whether each response was right.

        Returns:
            [`CalibratedEstimator`]: a new, calibrated estimator.
        """
        ...

    def score_probe(self, probe: int, trace: ResponseTrace) -> float:
        """
        Score a probe with a fit that did not use its own label.

        Args:
            probe (`int`): index of the probe in the arguments of `calibrate`.
            trace ([`ResponseTrace`]): trace of the probe's response.

        Returns:
            `float`: higher = less sure.
        """
        ...


@dataclass(frozen=True)
class Score(ABC):
    """
    Base class of the scores of this package. It has a name and scores one response at a time. By default there is
    nothing to fit.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self: T, traces: Sequence[ResponseTrace]) -> T:
        """Return itself: the score does not depend on the pool."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return one score per trace, shape `(num_traces,)`; NaN for an empty response."""
        return np.array([self.score(trace) if len(trace) else np.nan for trace in traces], dtype=float)

    @abstractmethod
    def score(self, trace: ResponseTrace) -> float:
        """Return the score of one non-empty response."""


def check_probes(estimator: Estimator, num_probes: int, discard_ratio: float | None) -> None:
    """Raise `ValueError` if the score learns from the probe set, but there is none."""
    if isinstance(estimator, CalibratedEstimator) and num_probes == 0:
        raise ValueError(
            f"`estimator` is {type(estimator).__name__}, which learns from a probe set, but with "
            f"`discard_ratio={discard_ratio}` there is none. Pass a `probe_size` as well, or another score."
        )
