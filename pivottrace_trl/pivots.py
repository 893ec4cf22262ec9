"""From a signal (one number per response token) to pivots and their density. Pure arrays, no model."""

from collections.abc import Sequence

import numpy as np


def signal_jumps(signal: np.ndarray) -> np.ndarray:
    """
    Upward steps of a signal from one response token to the next.

    Args:
        signal (`np.ndarray` of shape `(num_tokens,)`):
            Long-range attention mass of each response token, in `[0, 1]`.

    Returns:
        `np.ndarray` of shape `(num_tokens,)`: `signal[t] - signal[t - 1]`, and 0 for the first token, which has no
        response token before it. Negative where the model returns to its neighbourhood.
    """
    return np.diff(signal, prepend=signal[:1])


def pivot_threshold(signals: Sequence[np.ndarray], quantile: float) -> float:
    """
    Height a jump must exceed to count as a pivot: a quantile of all jumps in the pool.

    One threshold for the whole pool, rather than one per response, keeps the number of pivots comparable between
    responses: with a quantile of its own every response would have the same density.

    Args:
        signals (`Sequence[np.ndarray]`):
            One signal of shape `(num_tokens,)` per response.
        quantile (`float`):
            Share of the jumps that are not pivots, in `(0, 1)`.

    Returns:
        `float`: the threshold, in the unit of the signal. 0.0 if no response has two tokens.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"`quantile` is {quantile}, but must lie strictly between 0 and 1.")
    jumps = [signal_jumps(signal)[1:] for signal in signals if len(signal) > 1]
    return float(np.quantile(np.concatenate(jumps), quantile)) if jumps else 0.0


def find_pivots(signal: np.ndarray, threshold: float) -> np.ndarray:
    """
    Mark the tokens at which long-range attention jumps ("pivotal changes in long-range attention signals",
    arXiv 2606.04503).

    Args:
        signal (`np.ndarray` of shape `(num_tokens,)`):
            Long-range attention mass of each response token.
        threshold (`float`):
            Height that the jump must exceed; see [`pivot_threshold`].

    Returns:
        `np.ndarray` of shape `(num_tokens,)`, `bool`: whether each token is a pivot.
    """
    return signal_jumps(signal) > max(threshold, 0.0)


def pivot_density(signal: np.ndarray, threshold: float) -> float:
    """
    Pivots per response token.

    Args:
        signal (`np.ndarray` of shape `(num_tokens,)`):
            Long-range attention mass of each response token.
        threshold (`float`):
            Height that the jump must exceed; see [`pivot_threshold`].

    Returns:
        `float`: number of pivots divided by the number of tokens, in `[0, 1]`; NaN for an empty response.
    """
    if len(signal) == 0:
        return float("nan")
    if np.isnan(signal).any():
        return float("nan")
    return float(find_pivots(signal, threshold).mean())
