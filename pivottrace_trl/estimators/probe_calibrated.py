"""A score that is fitted to the labels of the probe set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from ..tracing.pivots import find_pivots, pivot_threshold
from ..tracing.trace import ResponseTrace
from .base import Score


# Number of folds of the probe set. A probe is scored by the fit without its fold.
_NUM_FOLDS = 8


@dataclass(frozen=True)
class ProbeCalibrated(Score):
    """
    Logistic regression of "the answer is wrong" on simple signals of one response, fitted to the labels of the probe
    set. Every signal rises with uncertainty, so weights are not negative. A ridge penalty pulls the weights towards
    those of [`TotalEntropy`] alone, which is also the score before any label is known. A probe is scored by a fit to
    the other probes. The score is our own construction.

    Args:
        strength (`float`, *optional*, defaults to `3.0`):
            Weight of the ridge penalty against the log-likelihood.
        threshold (`float`, *optional*):
            Size that a jump of long-range attention must exceed to be a pivot, in attention probability; set by `fit`.
        centre (`list[float]`, *optional*):
            Mean of each signal over the pool; set by `fit`.
        scale (`list[float]`, *optional*):
            Standard deviation of each signal over the pool; set by `fit`.
        weights (`list[list[float]]`, *optional*):
            Weights of the signals: first for the fit to all probes, then for the fits without each fold; set by
            `calibrate`.
    """

    name = "probe_calibrated"

    strength: float = 3.0
    threshold: float | None = None
    centre: list[float] | None = None
    scale: list[float] | None = None
    weights: list[list[float]] | None = None

    def fit(self, traces: Sequence[ResponseTrace]) -> "ProbeCalibrated":
        """Return the score with the pivot threshold, and the mean and standard deviation of each signal, set."""
        threshold = pivot_threshold([trace.long_range_mass for trace in traces], 0.8)
        signals = np.array([_signals(trace, threshold) for trace in traces if len(trace)])
        return replace(
            self,
            threshold=threshold,
            centre=signals.mean(axis=0).tolist(),
            scale=signals.std(axis=0).clip(min=1e-6).tolist(),
            weights=[_prior(signals.shape[1]).tolist()],
        )

    def calibrate(self, traces: Sequence[ResponseTrace], was_right: np.ndarray) -> "ProbeCalibrated":
        """Return the score with weights that separate the probes with right answers from the others."""
        signals = np.array([self._standardised(trace) for trace in traces])
        is_wrong = ~np.asarray(was_right, bool)
        fold = np.arange(len(traces)) % _NUM_FOLDS
        kept = [np.ones(len(traces), bool)] + [fold != number for number in range(_NUM_FOLDS)]
        return replace(self, weights=[_fit(signals[k], is_wrong[k], self.strength).tolist() for k in kept])

    def score(self, trace: ResponseTrace) -> float:
        """Return the log-odds of failure, up to a constant."""
        return self._score(trace, 0)

    def score_probe(self, probe: int, trace: ResponseTrace) -> float:
        """Return the score of a probe by the fit without its fold."""
        return self._score(trace, 1 + probe % _NUM_FOLDS)

    def _score(self, trace: ResponseTrace, number: int) -> float:
        standardised = self._standardised(trace)
        assert self.weights is not None
        return float(standardised @ np.array(self.weights[number]))

    def _standardised(self, trace: ResponseTrace) -> np.ndarray:
        if self.threshold is None:
            raise RuntimeError("`ProbeCalibrated` is not fitted yet: call `fit(traces)` and use what it returns.")
        return (_signals(trace, self.threshold) - np.array(self.centre)) / np.array(self.scale)


def _signals(trace: ResponseTrace, threshold: float) -> np.ndarray:
    """Signals of one response, each rising with uncertainty. Counts and sums are taken as logarithms."""
    is_pivot = find_pivots(trace.long_range_mass, threshold)
    return np.array(
        [
            np.log1p(trace.entropy.sum(dtype=float)),
            np.log1p((trace.entropy > 0.5).sum()),
            np.log1p(trace.entropy[is_pivot].sum(dtype=float)),
            np.log1p(is_pivot.sum()),
            np.log1p(len(trace)),
            trace.entropy.mean(dtype=float),
        ]
    )


def _prior(num_signals: int) -> np.ndarray:
    """Prior weights, with all weight on the summed entropy."""
    return np.eye(num_signals)[0]


def _fit(signals: np.ndarray, is_wrong: np.ndarray, strength: float) -> np.ndarray:
    """Penalised maximum likelihood with an intercept and non-negative weights."""
    num_signals = signals.shape[1]
    prior = _prior(num_signals)
    sign = np.where(is_wrong, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin = sign * (signals @ weights + intercept)
        slope = -sign / (1 + np.exp(margin))
        penalty = strength * ((weights - prior) ** 2).sum()
        gradient = np.append(signals.T @ slope + 2 * strength * (weights - prior), slope.sum() + 0.02 * intercept)
        return float(np.logaddexp(0, -margin).sum() + penalty + 0.01 * intercept**2), gradient

    bounds = [(0.0, None)] * num_signals + [(None, None)]
    return minimize(loss, np.append(prior, 0.0), jac=True, bounds=bounds, method="L-BFGS-B").x[:-1]
