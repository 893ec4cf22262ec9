"""Measures every score on a pool whose labels are all known."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..estimators import ESTIMATORS, CalibratedEstimator
from ..routing.calibration import Calibration, calibrate
from ..routing.triage import TriageConfig, choose_probes, rank_pool, resolve_budget
from ..tracing.trace import ResponseTrace
from .metrics import Interval, auroc, bootstrap, purchase, spearman, without_length


SHARES = (0.10, 0.293, 0.50)
"""Annotated shares of the pool for which the study evaluates purchases. The middle one is the paper's."""


@dataclass(frozen=True)
class LabelledPool:
    """
    Traces and outcomes of a pool with all its labels. Arrays have shape `(num_prompts,)`.

    Attributes:
        traces (`list[ResponseTrace]`): traces of the greedy responses, with `agreement` if there are samples.
        is_wrong (`np.ndarray`, bool): whether the greedy response is wrong.
        pass_rate (`np.ndarray`, float): share of the samples that are right, in `[0, 1]`; NaN without samples.
        vote_is_right (`np.ndarray`, bool, or `None`): whether the majority answer of the samples is right; `None`
            without samples.
        num_tokens (`np.ndarray`, int): number of tokens of the greedy response.
        num_sampled_tokens (`np.ndarray`, int): number of tokens of all samples together.
    """

    traces: list[ResponseTrace]
    is_wrong: np.ndarray
    pass_rate: np.ndarray
    vote_is_right: np.ndarray | None
    num_tokens: np.ndarray
    num_sampled_tokens: np.ndarray


@dataclass(frozen=True)
class ScoreReport:
    """
    Quality of one score on one pool.

    Attributes:
        scores (`np.ndarray` of shape `(num_prompts,)`, float): the scores, higher = less sure.
        auroc ([`Interval`]): AUROC for "the greedy response is wrong".
        auroc_less_length ([`Interval`]): AUROC after regressing response length out of the score.
        auroc_less_baseline ([`Interval`]): AUROC minus that of the response length, paired over prompts.
        spearman ([`Interval`]): rank correlation with the failure rate of the samples; NaN without samples.
        tokens_per_prompt (`float`): number of generated tokens per prompt that the score needs.
        calibration ([`Calibration`]): calibration on the probe set.
        calibration_error (`float`): mean absolute difference between that curve and the observed success over ten
            equal sections of the ranking.
        purchases (`list[Purchase]`): results of buying at each of [`SHARES`].
    """

    scores: np.ndarray
    auroc: Interval
    auroc_less_length: Interval
    auroc_less_baseline: Interval
    spearman: Interval
    tokens_per_prompt: float
    calibration: Calibration
    calibration_error: float
    purchases: list


def measure(pool: LabelledPool, seed: int = 0) -> dict[str, ScoreReport]:
    """Score a verified pool with every estimator for which its traces suffice. Returns reports by name, best AUROC
    first."""
    has_samples = pool.vote_is_right is not None
    names = [name for name, kind in ESTIMATORS.items() if has_samples or "agreement" not in kind.needs]
    lengths = pool.num_tokens.astype(float)
    reports = {}
    for name in names:
        scores, probes = score_pool(ESTIMATORS[name](), pool)
        known = np.full(len(scores), np.nan)
        known[probes] = ~pool.is_wrong[probes]
        ranking = rank_pool(scores)
        calibration = calibrate(ranking, known)
        stretches = np.array_split(np.arange(len(scores)), min(10, len(scores)))
        right = (~pool.is_wrong)[ranking]
        error = sum(len(s) * abs(calibration.curve[s].mean() - right[s].mean()) for s in stretches) / len(scores)
        sampled = bool("agreement" in ESTIMATORS[name].needs)
        reports[name] = ScoreReport(
            scores=scores,
            auroc=bootstrap(auroc, scores, pool.is_wrong, seed=seed),
            auroc_less_length=bootstrap(_auroc_less_length, scores, lengths, pool.is_wrong, seed=seed),
            auroc_less_baseline=bootstrap(_gain, scores, lengths, pool.is_wrong, seed=seed),
            spearman=bootstrap(spearman, scores, pool.pass_rate, seed=seed),
            tokens_per_prompt=float((pool.num_sampled_tokens if sampled else pool.num_tokens).mean()),
            calibration=calibration,
            calibration_error=float(error),
            purchases=[purchase(scores, pool.is_wrong, pool.vote_is_right, share) for share in SHARES],
        )
    return dict(sorted(reports.items(), key=lambda item: -np.nan_to_num(item[1].auroc.value)))


def score_pool(estimator: Any, pool: LabelledPool) -> tuple[np.ndarray, np.ndarray]:
    """
    Score a pool as the callback does: fit, choose the probe set for a budget of 29.3%, and let the estimator learn
    from it if it can (cross-fitted). Empty responses get the highest score. Returns the scores, of shape
    `(num_prompts,)`, and the indices of the probes.
    """
    shown = [len(trace) > 1 for trace in pool.traces]
    fitted = estimator.fit(pool.traces)

    def filled(scores: np.ndarray) -> np.ndarray:
        return np.where(shown, scores, scores[shown].max())

    scores = filled(fitted(pool.traces))
    budget = resolve_budget(SHARES[1], len(scores))
    probes = choose_probes(scores, TriageConfig().resolve_probe_size(budget, len(scores)))
    if isinstance(fitted, CalibratedEstimator):
        learnt = [probe for probe in probes if shown[probe]]
        fitted = fitted.calibrate([pool.traces[i] for i in learnt], ~pool.is_wrong[learnt])
        scores = fitted(pool.traces)
        scores[learnt] = [fitted.score_probe(place, pool.traces[i]) for place, i in enumerate(learnt)]
        scores = filled(scores)
    return scores, probes


def _auroc_less_length(scores: np.ndarray, lengths: np.ndarray, is_wrong: np.ndarray) -> float:
    return auroc(without_length(scores, lengths), is_wrong)


def _gain(scores: np.ndarray, lengths: np.ndarray, is_wrong: np.ndarray) -> float:
    return auroc(scores, is_wrong) - auroc(lengths, is_wrong)
