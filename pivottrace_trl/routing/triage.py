"""Turns scores and a few bought labels into one route per prompt. Only NumPy: no model and no trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from numbers import Integral, Real

import numpy as np

from .calibration import Calibration, calibrate


# Default number of probes: enough for a curve with a few steps. At most half of the budget is used.
_DEFAULT_NUM_PROBES = 32
# If all verified prompts are right, this shows nothing unless chance explains it less often than this in a pool whose
# success probability is only `tau_high`.
_CHANCE = 0.05
# Verified rollouts that a prompt needs before its own pass rate can show that it is mastered.
_MIN_VERIFIED = 4


class Route(IntEnum):
    """What happens to a prompt until the next routing."""

    DISCARD = 0
    """Mastered: not trained on."""
    WEAK = 1
    """Trained on the majority answer of its own group, without a label."""
    ANNOTATE = 2
    """Trained on a bought label."""


@dataclass(frozen=True)
class TriageConfig:
    """
    How a pool is triaged.

    Args:
        probe_size (`int`, *optional*):
            Number of labels spent on the probe set, which count against the budget. Defaults to 32, or half of the
            budget if that is less.
        tau_high (`float`, *optional*, defaults to `0.85`):
            Probability of success at or above which prompts count as mastered.
        tau_low (`float`, *optional*, defaults to `0.5`):
            Probability of failure above which a majority vote is not trusted.
        min_agreement (`float`, *optional*, defaults to `0.75`):
            Share of a group that must give the majority answer before it is used as a pseudo-label, in `[0, 1]`.
        discard_ratio (`float`, *optional*):
            Share of the pool to discard from the bottom of the ranking, in `[0, 1)`, instead of using `tau_high`.
            Labels are then bought from the top of the ranking down instead of by `tau_low`, and no probe set is
            needed. The published comparison discards 0.421 and annotates 0.293 of the pool.
        reroutes (`bool`, *optional*, defaults to `True`):
            Whether the routes are computed again at the start of each epoch.

    Raises:
        ValueError: if a threshold or share is out of range.
    """

    probe_size: int | None = None
    tau_high: float = 0.85
    tau_low: float = 0.5
    min_agreement: float = 0.75
    discard_ratio: float | None = None
    reroutes: bool = True

    def __post_init__(self) -> None:
        if self.discard_ratio is not None and not 0.0 <= self.discard_ratio < 1.0:
            raise ValueError(
                f"`discard_ratio` is {self.discard_ratio}, but must be a share of the pool in [0, 1), such as 0.421. "
                "Leave it out to let the probe set decide."
            )
        if not 0.0 <= 1.0 - self.tau_low <= self.tau_high <= 1.0:
            raise ValueError(
                f"`tau_low` is {self.tau_low} and `tau_high` is {self.tau_high}, but both must be probabilities with "
                "1 - tau_low <= tau_high: a prompt cannot be mastered (right with probability `tau_high`) and wrong "
                "with probability `tau_low` at once."
            )
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ValueError(f"`min_agreement` is {self.min_agreement}, but must be a share of a group in [0, 1].")

    def resolve_probe_size(self, budget: int, pool_size: int, num_own: int = 0) -> int:
        """
        Number of probes for a budget and a pool. With a `discard_ratio`, it is 0 by default. If the user has labels,
        there may be more probes than the budget.

        Args:
            budget (`int`):
                Annotation budget, in labels.
            pool_size (`int`):
                Number of prompts in the pool.
            num_own (`int`, *optional*, defaults to `0`):
                Number of prompts with the user's own label.

        Returns:
            `int`

        Raises:
            ValueError: if `probe_size` exceeds the pool or the budget.
        """
        if self.probe_size is None and self.discard_ratio is not None:
            return 0
        if self.probe_size is None:
            return max(1, min(_DEFAULT_NUM_PROBES, budget // 2))
        is_count = isinstance(self.probe_size, Integral) and not isinstance(self.probe_size, bool)
        if not is_count or not 1 <= self.probe_size <= min(budget + num_own, pool_size):
            raise ValueError(
                f"`probe_size` is {self.probe_size}, but must be a number of prompts between 1 and the smaller of "
                f"the annotation budget ({budget} labels) and the pool ({pool_size} prompts). Lower it, or raise the "
                "budget."
            )
        return self.probe_size


@dataclass(frozen=True)
class Evidence:
    """
    What is known about each prompt of the pool besides its score. All arrays have shape `(num_prompts,)`.

    Attributes:
        is_labelled (`np.ndarray`, bool): whether the label is known.
        pass_rate (`np.ndarray`, float): share of the verified rollouts that were right, in `[0, 1]`; NaN if none was
            verified.
        num_verified (`np.ndarray`, int): number of rollouts behind `pass_rate`.
        agreement (`np.ndarray`, float): share of the latest group that gave its majority answer, in `[0, 1]`; NaN
            without a group.
    """

    is_labelled: np.ndarray
    pass_rate: np.ndarray
    num_verified: np.ndarray
    agreement: np.ndarray

    @classmethod
    def empty(cls, num_prompts: int) -> "Evidence":
        """Evidence of `num_prompts` prompts about which nothing is known yet."""
        return cls(
            is_labelled=np.zeros(num_prompts, bool),
            pass_rate=np.full(num_prompts, np.nan),
            num_verified=np.zeros(num_prompts, int),
            agreement=np.full(num_prompts, np.nan),
        )


@dataclass(frozen=True)
class TriageResult:
    """
    Outcome of [`assign_routes`].

    Attributes:
        routes (`np.ndarray` of shape `(num_prompts,)`, int8): a [`Route`] per prompt.
        to_buy (`np.ndarray` of shape `(num_labels,)`, int): prompts whose label should be bought now, most uncertain
            first.
        ranking (`np.ndarray` of shape `(num_prompts,)`, int): prompts from least to most uncertain.
        calibration ([`Calibration`]): how often the policy is right at each position of the ranking.
        discard_below (`float`): scores up to this value are in the mastered zone; -inf if there is no such zone.
        annotate_above (`float`): scores from this value on are in the zone to annotate; inf if there is no such zone.
    """

    routes: np.ndarray
    to_buy: np.ndarray
    ranking: np.ndarray
    calibration: Calibration
    discard_below: float
    annotate_above: float

    def counts(self) -> dict[str, int]:
        """Number of prompts per route, `{"discard": n, "weak": n, "annotate": n}`."""
        return count_routes(self.routes)


def count_routes(routes: np.ndarray) -> dict[str, int]:
    """Number of prompts per route, `{"discard": n, "weak": n, "annotate": n}`."""
    return {route.name.lower(): int((routes == route).sum()) for route in Route}


def resolve_budget(annotation_budget: float | int | str, pool_size: int, num_own: int = 0) -> int:
    """
    Turn a budget into a number of labels.

    Args:
        annotation_budget (`float`, `int` or `str`):
            Share of the pool in `(0, 1]` as a `float`, or number of labels as an `int`, or either as a text: `"30%"`,
            `"0.3"`, `"300"`.
        pool_size (`int`):
            Number of prompts in the pool.
        num_own (`int`, *optional*, defaults to `0`):
            Number of prompts with the user's own label. A share is a share of the other prompts.

    Returns:
        `int`: number of labels that may be bought. Shares are rounded down. It is at least 1, unless the user has
        labels for nearly all prompts.

    Raises:
        ValueError: if the budget is not positive, larger than the pool, or too small for one label.
    """
    value = _read_budget(annotation_budget) if isinstance(annotation_budget, str) else annotation_budget
    is_count = isinstance(value, Integral) and not isinstance(value, bool)
    is_share = isinstance(value, Real) and not isinstance(value, (Integral, bool))
    if not ((is_count and 1 <= value <= pool_size) or (is_share and 0.0 < value <= 1.0)):
        raise ValueError(
            f"`annotation_budget` is {annotation_budget!r}, which is neither a share in (0, 1] nor a number of labels "
            f"between 1 and the size of the pool ({pool_size}). Pass 0.293 or '29.3%' for a share, 300 for a number."
        )
    labels = int(value) if is_count else int(np.floor(value * (pool_size - num_own) + 1e-9))
    if labels == 0 and num_own == 0:
        raise ValueError(
            f"`annotation_budget` is {annotation_budget!r}, less than one label of a pool of {pool_size}. Pass at "
            f"least {1 / pool_size:.3g}, or `annotation_budget=1` for one label."
        )
    return labels


def _read_budget(text: str) -> float | int:
    """The number that a budget is in writing; NaN if it is none."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return float("nan")


def rank_pool(scores: np.ndarray) -> np.ndarray:
    """
    Order the pool from least to most uncertain. Ties keep the order of the pool.

    Args:
        scores (`np.ndarray` of shape `(num_prompts,)`):
            One finite score per prompt, higher = less sure.

    Returns:
        `np.ndarray` of shape `(num_prompts,)`, int: indices of prompts.

    Raises:
        ValueError: if the pool is empty or a score is NaN or infinite.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"`scores` has shape {scores.shape}, but must hold one number per prompt of a non-empty pool."
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise ValueError(
            f"{len(bad)} of {len(scores)} scores are not finite, the first is {scores[bad[0]]} for prompt {bad[0]}. "
            "An estimator must return a finite number for every non-empty response: check it, and check the model for "
            "NaN activations (bfloat16 instead of float16 often cures them)."
        )
    return np.argsort(scores, kind="stable")


def choose_probes(scores: np.ndarray, num_probes: int, known: np.ndarray | None = None) -> np.ndarray:
    """
    Choose the probe set. The ranking is divided into `num_probes` sections of equal length. Each contributes its
    middle prompt, or, if it has prompts that are labelled or asked for as probes already, the one nearest to its
    middle.

    Args:
        scores (`np.ndarray` of shape `(num_prompts,)`):
            One finite score per prompt, higher = less sure.
        num_probes (`int`):
            Size of the probe set.
        known (`np.ndarray` of shape `(num_prompts,)`, bool, *optional*):
            Prompts that need not be asked for again.

    Returns:
        `np.ndarray` of shape `(num_probes,)`, int: indices of prompts, least uncertain first.

    Raises:
        ValueError: if the pool is smaller than the probe set.
    """
    ranking = rank_pool(scores)
    if not 1 <= num_probes <= len(ranking):
        raise ValueError(
            f"The probe set of {num_probes} prompts does not fit a pool of {len(ranking)}. Pass a `probe_size` "
            "between 1 and the size of the pool, or a larger pool."
        )
    middles = (np.arange(num_probes) + 0.5) * len(ranking) / num_probes
    probes = ranking[middles.astype(int)]
    if known is not None:
        places = np.flatnonzero(np.asarray(known)[ranking])
        stretches = ((places + 0.5) * num_probes / len(ranking)).astype(int)
        # If a section has several, the last one written is kept.
        nearest_last = np.argsort(-np.abs(places + 0.5 - middles[stretches]), kind="stable")
        probes[stretches[nearest_last]] = ranking[places[nearest_last]]
    return probes


def assign_routes(
    scores: np.ndarray, evidence: Evidence, budget_left: int, config: TriageConfig | None = None
) -> TriageResult:
    """
    Give every prompt a route, with the thresholds and shares of the `config`.

    The verified prompts calibrate the score (probe-calibrated triage, arXiv 2606.04503). The beginning of the ranking,
    where the policy is right with probability `tau_high` or more, is the mastered zone. The end of the ranking, where
    it is wrong with probability above `tau_low`, is the zone to annotate. We judge a vote by the error rate of a
    single response, which is the cautious choice: as long as wrong answers differ from each other, a vote is right at
    least as often.

    If all verified prompts were right, there must be enough of them: no zone counts as mastered if the same would
    happen in more than one of twenty pools whose success probability is only `tau_high`. If the verified prompts show
    that the score does not separate right from wrong, the curve is constant and the ranking is replaced by a random
    one. Evidence about a prompt itself takes precedence over its position in the ranking:

    - a labelled prompt is trained on its label, unless it is in the mastered zone and was right, or a whole group of
      at least 4 rollouts was right;
    - labels are bought for unlabelled prompts in the zone to annotate, and for those whose latest group agreed too
      little, most uncertain first, as far as `budget_left` goes. The others stay weak.

    With a `discard_ratio`, the zones are shares of the ranking, as in the published comparison of scores: the lowest
    share counts as mastered, and labels are bought from the top down, whatever the verified prompts say.

    Args:
        scores (`np.ndarray` of shape `(num_prompts,)`):
            One finite score per prompt, higher = less sure.
        evidence ([`Evidence`]):
            What is known about each prompt.
        budget_left (`int`):
            Number of labels that may be bought now.
        config ([`TriageConfig`], *optional*):
            Thresholds; or the share to discard, which replaces them.

    Returns:
        [`TriageResult`]: `to_buy` is never longer than `budget_left`; routes count those prompts as annotated.

    Raises:
        ValueError: if the pool is empty or a score is not finite.
    """
    config = config or TriageConfig()
    scores = np.asarray(scores, dtype=float)
    ranking = rank_pool(scores)
    calibration = calibrate(ranking, evidence.pass_rate)
    if config.discard_ratio is None:
        if calibration.is_flat:
            # Drawn along the ranking, so that the result does not depend on the order of the pool.
            ranking = np.random.default_rng(0).permutation(ranking)
        # NaN compares as False: without verified prompts, nothing is discarded and nothing has to be annotated.
        may_be_chance = _are_too_few(evidence.pass_rate, config.tau_high)
        num_mastered = 0 if may_be_chance else _prefix_length(calibration.curve >= config.tau_high)
        num_untrusted = _prefix_length((1 - calibration.curve > config.tau_low)[::-1])
    else:
        num_mastered = int(config.discard_ratio * len(scores))
        num_untrusted = len(scores) - num_mastered
    in_mastered_zone = np.zeros(len(scores), bool)
    in_mastered_zone[ranking[:num_mastered]] = True
    in_untrusted_zone = np.zeros(len(scores), bool)
    in_untrusted_zone[ranking[len(ranking) - num_untrusted :]] = True

    was_right = np.nan_to_num(evidence.pass_rate, nan=-1.0) >= config.tau_high
    group_was_right = (evidence.pass_rate == 1.0) & (evidence.num_verified >= _MIN_VERIFIED)
    is_mastered = np.where(evidence.is_labelled, (in_mastered_zone & was_right) | group_was_right, in_mastered_zone)
    has_poor_vote = np.nan_to_num(evidence.agreement, nan=1.0) < config.min_agreement

    routes = np.where(is_mastered, Route.DISCARD, Route.WEAK).astype(np.int8)
    routes[evidence.is_labelled & ~is_mastered] = Route.ANNOTATE
    # After a poor vote, a prompt does not count as mastered, whatever its position in the ranking.
    routes[~evidence.is_labelled & has_poor_vote] = Route.WEAK
    wanted = ~evidence.is_labelled & (routes == Route.WEAK) & (in_untrusted_zone | has_poor_vote)
    most_uncertain_first = ranking[::-1]
    to_buy = most_uncertain_first[wanted[most_uncertain_first]][: max(budget_left, 0)]
    routes[to_buy] = Route.ANNOTATE
    return TriageResult(
        routes=routes,
        to_buy=to_buy,
        ranking=ranking,
        calibration=calibration,
        discard_below=float(scores[ranking[:num_mastered]].max(initial=-np.inf)),
        annotate_above=float(scores[ranking[len(ranking) - num_untrusted :]].min(initial=np.inf)),
    )


def _are_too_few(pass_rate: np.ndarray, tau_high: float) -> bool:
    """Whether all verified prompts were right, but so few that this may be chance."""
    verified = pass_rate[np.isfinite(pass_rate)]
    return bool((verified >= tau_high).all()) and tau_high ** len(verified) > _CHANCE


def _prefix_length(condition: Sequence[bool] | np.ndarray) -> int:
    """Number of leading true values."""
    condition = np.asarray(condition, dtype=bool)
    return len(condition) if condition.all() else int(np.argmin(condition))
