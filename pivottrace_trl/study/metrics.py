"""Metrics of how well a score ranks a labelled pool. Only NumPy: no model."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, spearmanr


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f}-{self.high:.2f})"


def auroc(scores: np.ndarray, is_wrong: np.ndarray) -> float:
    """
    Probability that a wrong response scores higher than a right one, where ties count half. NaN if all responses are
    right or all are wrong. Arrays have shape `(num_prompts,)`.
    """
    num_wrong, num_right = int(is_wrong.sum()), int((~is_wrong).sum())
    if not num_wrong or not num_right:
        return float("nan")
    return float((rankdata(scores)[is_wrong].sum() - num_wrong * (num_wrong + 1) / 2) / (num_wrong * num_right))


def without_length(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    The part of a score that response length does not explain: its ranks minus their regression on the ranks of the
    length and their squares. Arrays have shape `(num_prompts,)`.
    """
    length = rankdata(lengths) / len(lengths)
    design = np.stack([np.ones_like(length), length, length**2], axis=1)
    ranks = rankdata(scores)
    # Rounded, so that rounding errors do not count as a ranking if the score is a function of length.
    return np.round(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0], 6)


def bootstrap(statistic, *columns: np.ndarray, num_resamples: int = 1000, seed: int = 0) -> Interval:
    """
    Estimate a statistic of some columns, each of shape `(num_prompts,)`, with a percentile interval over resampled
    prompts. Resamples without a value (all right, for example) are left out. With the same seed, all scores see the
    same resamples.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(columns[0]), len(columns[0])) for _ in range(num_resamples)]
    values = np.array([statistic(*(column[draw] for column in columns)) for draw in draws])
    if not np.isfinite(values).any():
        return Interval(statistic(*columns), float("nan"), float("nan"))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(statistic(*columns)), float(low), float(high))


def spearman(scores: np.ndarray, pass_rate: np.ndarray) -> float:
    """Rank correlation of a score with the failure rate, `1 - pass_rate`; NaN if either is constant."""
    if np.ptp(scores) == 0 or np.ptp(pass_rate) == 0:
        return float("nan")
    return float(spearmanr(scores, 1 - pass_rate).statistic)


@dataclass(frozen=True)
class Purchase:
    """Result of annotating the most uncertain share of the pool, and discarding the least uncertain one."""

    share: float  # annotated share of the pool
    recall: float  # share of all wrong responses that are annotated
    purity: float  # share of right responses among the discarded; NaN if none is discarded
    vote_accuracy: float  # share of the other prompts whose majority vote is right; NaN without samples


def purchase(
    scores: np.ndarray,
    is_wrong: np.ndarray,
    vote_is_right: np.ndarray | None,
    share: float,
    discarded: float = 0.421,
) -> Purchase:
    """
    Spend a budget along a ranking, where higher scores are less sure. `discarded` is the share of the pool that is
    discarded, as far as it is not annotated; the default is the paper's. Arrays have shape `(num_prompts,)`.
    """
    num = len(scores)
    ranking = np.argsort(scores, kind="stable")
    num_annotated = int(np.floor(share * num + 1e-9))
    num_discarded = min(int(np.floor(discarded * num + 1e-9)), num - num_annotated)
    annotated, rest = ranking[num - num_annotated :], ranking[: num - num_annotated]
    kept = rest[num_discarded:]
    return Purchase(
        share=share,
        recall=float(is_wrong[annotated].sum() / max(1, is_wrong.sum())),
        purity=float((~is_wrong[rest[:num_discarded]]).mean()) if num_discarded else float("nan"),
        vote_accuracy=float(vote_is_right[kept].mean()) if vote_is_right is not None and len(kept) else float("nan"),
    )


def risk_coverage(scores: np.ndarray, is_wrong: np.ndarray) -> np.ndarray:
    """Share of wrong responses among the `k` least uncertain ones, for every `k` from 1 to `num_prompts`."""
    ranked = is_wrong[np.argsort(scores, kind="stable")]
    return np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
