"""Pivots against closed forms."""

import numpy as np
import pytest

from pivottrace_trl.tracing.pivots import find_pivots, pivot_threshold, signal_jumps


SIGNAL = np.array([0.1, 0.1, 0.6, 0.5, 0.5, 0.0], np.float32)


def test_jumps_are_changes_after_each_token():
    assert np.allclose(signal_jumps(SIGNAL), [0, 0.5, 0.1, 0, 0.5, 0])
    assert signal_jumps(np.array([0.3])).tolist() == [0.0]
    assert signal_jumps(np.array([])).tolist() == []


def test_pivots_exceed_the_threshold():
    assert np.flatnonzero(find_pivots(SIGNAL, 0.2)).tolist() == [1, 4]


def test_threshold_is_a_quantile_over_the_whole_pool():
    signals = [np.array([0.0, 0.1]), np.array([0.0, 0.2, 0.5]), np.array([0.0, 0.4]), np.array([0.7])]
    assert pivot_threshold(signals, 0.5) == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4], 0.5))
    assert pivot_threshold([np.array([0.7])], 0.5) == 0.0
    with pytest.raises(ValueError, match="`quantile` is 1.0"):
        pivot_threshold(signals, 1.0)
