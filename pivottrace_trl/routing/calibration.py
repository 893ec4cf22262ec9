"""Calibrates a ranking on a few verified prompts. Only NumPy: no model and no trainer."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.isotonic import isotonic_regression


# A score separates right from wrong if its AUROC is this many standard errors above chance.
_MIN_SEPARATION = 0.5
_NUM_RESAMPLES = 200
# Shares of the resampled curves below and above the confidence band.
_TAIL = 0.05
_NUM_BINS = 5
_NUM_FOLDS = 5
# The band is computed at this many positions of the ranking, and interpolated linearly between them.
_NUM_BAND_PLACES = 101


@dataclass(frozen=True)
class Calibration:
    """
    How often the policy is right at each position of a ranking from least to most uncertain.

    Attributes:
        curve (`np.ndarray` of shape `(num_prompts,)`, float):
            Estimated probability of success, non-increasing along the ranking; NaN if nothing was verified.
        low, high (`np.ndarray` of shape `(num_prompts,)`, float):
            Limits of the 90% confidence band of the curve (bootstrap over the verified prompts).
        error (`float`):
            Expected calibration error: mean absolute difference between predicted and observed success over bins of
            equally many verified prompts. Each prompt is predicted by a curve that was fitted without it. NaN with
            fewer than two verified prompts.
        separation (`float`):
            AUROC of the ranking for failure among the verified prompts, 0.5 = chance; NaN if all were right or all
            were wrong.
        is_flat (`bool`):
            Whether the ranking fails to separate the verified prompts that were right from those that were wrong.
    """

    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: float
    separation: float
    is_flat: bool


def calibrate(ranking: np.ndarray, pass_rate: np.ndarray) -> Calibration:
    """
    Estimate how often the policy is right along a ranking. A sliding window averages the pass rates of the verified
    prompts, and an isotonic fit to these averages makes the curve non-increasing from the least to the most uncertain
    prompt.

    Args:
        ranking (`np.ndarray` of shape `(num_prompts,)`, int):
            Indices of prompts, from least to most uncertain.
        pass_rate (`np.ndarray` of shape `(num_prompts,)`, float):
            Share of right rollouts of each prompt, in `[0, 1]`; NaN if nothing was verified.

    Returns:
        [`Calibration`]
    """
    ranked = np.asarray(pass_rate, dtype=float)[ranking]
    places = np.flatnonzero(np.isfinite(ranked))
    rates = ranked[places]
    nothing = np.full(len(ranking), np.nan)
    if len(places) == 0:
        return Calibration(nothing, nothing, nothing, float("nan"), float("nan"), False)
    separation, is_flat = _separation(places, rates)
    everywhere = np.arange(len(ranking))
    grid = np.linspace(0, len(ranking) - 1, min(_NUM_BAND_PLACES, len(ranking)))
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(_NUM_RESAMPLES):
        counts = np.bincount(rng.integers(0, len(places), len(places)), minlength=len(places))
        drawn = np.repeat(np.arange(len(places)), counts)  # in order, without sorting
        resampled.append(_fit(places[drawn], rates[drawn], grid, is_flat))
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL], axis=0)
    return Calibration(
        curve=_fit(places, rates, everywhere, is_flat),
        low=np.interp(everywhere, grid, low),
        high=np.interp(everywhere, grid, high),
        error=_calibration_error(places, rates, is_flat),
        separation=separation,
        is_flat=is_flat,
    )


def _fit(places: np.ndarray, rates: np.ndarray, at: np.ndarray, is_flat: bool) -> np.ndarray:
    """The curve fitted to verified prompts at increasing positions, evaluated at the positions `at`."""
    if is_flat:
        return np.full(len(at), rates.mean())
    width = min(len(places), max(5, len(places) // 4))
    cumulative = np.concatenate([[0.0], np.cumsum(rates)])
    means = (cumulative[width:] - cumulative[:-width]) / width
    centres = (places[: len(means)] + places[width - 1 :]) / 2
    return np.interp(at, centres, isotonic_regression(means, increasing=False, y_min=0.0, y_max=1.0))


def _separation(places: np.ndarray, rates: np.ndarray) -> tuple[float, bool]:
    """AUROC of the positions for failure, and whether it is less than half a standard error above chance."""
    right, wrong = places[rates > 0.5], places[rates <= 0.5]
    if len(right) == 0 or len(wrong) == 0:
        return float("nan"), False
    auroc = mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right))
    standard_error = np.sqrt((len(places) + 1) / (12 * len(right) * len(wrong)))
    return float(auroc), bool(auroc < 0.5 + _MIN_SEPARATION * standard_error)


def _calibration_error(places: np.ndarray, rates: np.ndarray, is_flat: bool) -> float:
    if len(places) < 2:
        return float("nan")
    predicted = np.empty(len(places))
    fold = np.arange(len(places)) % min(_NUM_FOLDS, len(places))
    for number in range(fold.max() + 1):
        left_out = fold == number
        predicted[left_out] = _fit(places[~left_out], rates[~left_out], places[left_out], is_flat)
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(_NUM_BINS, len(places)))
    return float(sum(len(b) * abs(predicted[b].mean() - rates[b].mean()) for b in bins) / len(places))
