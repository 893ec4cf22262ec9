"""Pivots and estimators against closed forms."""

import numpy as np
import pytest

from pivottrace_trl import (
    ESTIMATORS,
    Estimator,
    ForkingTokens,
    MeanEntropy,
    PivotCount,
    PivotDensity,
    PivotEntropy,
    RandomScore,
    ResponseLength,
    ResponseTrace,
    get_estimator,
)
from pivottrace_trl.pivots import find_pivots, pivot_density, pivot_threshold, signal_jumps


SIGNAL = np.array([0.1, 0.1, 0.6, 0.5, 0.5, 0.0], np.float32)


def trace(signal, entropy=None) -> ResponseTrace:
    signal = np.asarray(signal, np.float32)
    entropy = np.ones_like(signal) if entropy is None else np.asarray(entropy, np.float32)
    return ResponseTrace(signal, np.zeros_like(signal), entropy)


def test_jumps_are_changes_after_each_token():
    assert np.allclose(signal_jumps(SIGNAL), [0, 0.5, 0.1, 0, 0.5, 0])
    assert signal_jumps(np.array([0.3])).tolist() == [0.0]
    assert signal_jumps(np.array([])).tolist() == []


def test_pivots_exceed_the_threshold():
    assert np.flatnonzero(find_pivots(SIGNAL, 0.2)).tolist() == [1, 4]
    assert pivot_density(SIGNAL, 0.2) == pytest.approx(2 / 6)
    assert pivot_density(SIGNAL, 0.6) == 0.0
    assert np.isnan(pivot_density(np.array([]), 0.2))
    assert np.isnan(pivot_density(np.array([0.1, np.nan]), 0.2))


def test_threshold_is_a_quantile_over_the_whole_pool():
    signals = [np.array([0.0, 0.1]), np.array([0.0, 0.2, 0.5]), np.array([0.0, 0.4]), np.array([0.7])]
    assert pivot_threshold(signals, 0.5) == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4], 0.5))
    assert pivot_threshold([np.array([0.7])], 0.5) == 0.0
    with pytest.raises(ValueError, match="`quantile` is 1.0"):
        pivot_threshold(signals, 1.0)


def test_estimators():
    traces = [trace(SIGNAL, [1, 2, 4, 8, 16, 32]), trace([0.2, 0.2, 0.2]), trace([])]
    density = PivotDensity(threshold=0.2)
    assert np.allclose(density(traces), [2 / 6, 0, np.nan], equal_nan=True)
    assert np.allclose(PivotEntropy(threshold=0.2)(traces), [2 + 16, 0, np.nan], equal_nan=True)
    assert np.allclose(PivotCount(threshold=0.2)(traces), [2, 0, np.nan], equal_nan=True)
    assert np.allclose(ResponseLength()(traces), [6, 3, np.nan], equal_nan=True)
    assert np.allclose(MeanEntropy()(traces), [63 / 6, 1, np.nan], equal_nan=True)
    assert np.allclose(ForkingTokens(min_entropy=1.0)(traces), [5, 0, np.nan], equal_nan=True)


def test_random_scores_differ_between_responses_and_seeds_and_nothing_else():
    traces = [trace(np.random.default_rng(i).random(5)) for i in range(200)]
    scores = RandomScore()(traces)
    assert np.array_equal(RandomScore()(traces[::-1]), scores[::-1])
    assert len(set(scores)) == 200 and scores.min() < 0.05 and scores.max() > 0.95
    assert abs(np.corrcoef(scores, RandomScore(seed=1)(traces))[0, 1]) < 0.2
    assert np.isnan(RandomScore()([trace([])])).all()


def test_estimators_by_name():
    assert isinstance(get_estimator(), PivotEntropy)
    assert isinstance(get_estimator("forking_tokens"), ForkingTokens)
    own = PivotCount(quantile=0.9)
    assert get_estimator(own) is own
    with pytest.raises(ValueError, match="'pivots', but must be one of entropy, forking_tokens, length"):
        get_estimator("pivots")
    for wrong in (PivotCount, 3):
        with pytest.raises(TypeError, match="must be a name or have `fit"):
            get_estimator(wrong)


@pytest.mark.parametrize("kind", [PivotCount, PivotDensity, PivotEntropy])
def test_fit_sets_the_threshold_once_for_the_pool(kind):
    rng = np.random.default_rng(0)
    traces = [trace(rng.random(20)) for _ in range(10)]
    fresh = kind(quantile=0.9)
    with pytest.raises(RuntimeError, match="no threshold yet"):
        fresh(traces)
    fitted = fresh.fit(traces)
    assert fresh.threshold is None and fitted.threshold == pivot_threshold([t.long_range_mass for t in traces], 0.9)
    share = np.concatenate([find_pivots(t.long_range_mass, fitted.threshold)[:-1] for t in traces]).mean()
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("estimator", [get_estimator(name) for name in ESTIMATORS], ids=list(ESTIMATORS))
def test_estimators_score_each_trace_by_itself(estimator):
    """Training scores a few responses at a time."""
    assert isinstance(estimator, Estimator)
    rng = np.random.default_rng(0)
    traces = [trace(rng.random(n), rng.random(n) * 2) for n in (12, 3, 40, 7)]
    fitted = estimator.fit(traces)
    alone = np.concatenate([fitted([one]) for one in traces])
    assert np.array_equal(fitted(traces), alone) and np.isfinite(alone).all()
