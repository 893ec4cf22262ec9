"""Scores and a few bought labels to one route per prompt. Pure numpy: knows no model and no trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from numbers import Integral, Real

import numpy as np

from .calibration import Calibration, calibrate


# Probes by default: enough for a curve of a few steps, at most half of the budget.
_DEFAULT_NUM_PROBES = 32
# Verified prompts that are all right show nothing if that happens more often by chance in a pool that is right with
# probability `tau_high` only.
_CHANCE = 0.05
# Verified rollouts of a prompt from which its own pass rate can show that it is mastered.
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
            Number of labels spent on the probe set; they count against the budget. Defaults to 32, or half of the
            budget if that is less.
        tau_high (`float`, *optional*, defaults to `0.85`):
            Probability of success from which prompts count as mastered.
        tau_low (`float`, *optional*, defaults to `0.5`):
            Probability of failure above which a majority vote is not trusted.
        min_agreement (`float`, *optional*, defaults to `0.75`):
            Share of a group that must give the majority answer before it is used as a pseudo-label.
        discard_ratio (`float`, *optional*):
            Share of the pool to discard from the bottom of the ranking, in `[0, 1)`, instead of by `tau_high`; labels
            are then bought from the top down instead of by `tau_low`, and no probe set is needed. The published
            comparison discards 0.421 and annotates 0.293.
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
                f"`tau_low` is {self.tau_low} and `tau_high` is {self.tau_high}, but both are probabilities, and what "
                "is right with probability `tau_high` must not be wrong with probability `tau_low`: 1 - tau_low <= "
                "tau_high."
            )
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ValueError(f"`min_agreement` is {self.min_agreement}, but must be a share of a group in [0, 1].")

    def resolve_probe_size(self, budget: int, pool_size: int, num_own: int = 0) -> int:
        """
        Number of probes for a budget (in labels) and a pool; 0 by default with a `discard_ratio`. Where the user has
        labels, probes may be more than the budget.

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
        is_labelled (`np.ndarray`, `bool`): whether the label was bought.
        pass_rate (`np.ndarray`, float): share of the verified rollouts that were right; NaN where none was verified.
        num_verified (`np.ndarray`, int): number of rollouts behind `pass_rate`.
        agreement (`np.ndarray`, float): share of the last group that gave its majority answer; NaN without a group.
    """

    is_labelled: np.ndarray
    pass_rate: np.ndarray
    num_verified: np.ndarray
    agreement: np.ndarray

    @classmethod
    def empty(cls, num_prompts: int) -> "Evidence":
        """Nothing known yet about `num_prompts` prompts."""
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
        to_buy (`np.ndarray`, int): prompts whose label should be bought now, most uncertain first.
        ranking (`np.ndarray` of shape `(num_prompts,)`, int): prompts from least to most uncertain.
        calibration ([`Calibration`]): how often the policy is right at each place of the ranking.
        discard_below (`float`): scores at most this high lie in the mastered zone; -inf if there is none.
        annotate_above (`float`): scores at least this high lie in the zone where voting is not trusted; inf if none.
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
            Number of prompts whose label the user has. A share is one of the others.

    Returns:
        `int`: number of labels that may be bought; shares are rounded down. It is at least 1, unless the user has
        labels, and few prompts or none are left without.

    Raises:
        ValueError: if the budget is not positive, above the pool, or too small for one label.
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
    Order the pool from least to most uncertain; ties keep the order of the pool.

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
    Choose the probe set: the middle of each of `num_probes` equal stretches of the ranking, or of a stretch with
    prompts whose label is there, or asked for as a probe, already, the one of them that is nearest to its middle.

    Args:
        scores (`np.ndarray` of shape `(num_prompts,)`):
            One score per prompt.
        num_probes (`int`):
            Size of the probe set.
        known (`np.ndarray` of shape `(num_prompts,)`, `bool`, *optional*):
            Prompts that need not be asked for.

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
        # Of several in a stretch, the last one written stays.
        nearest_last = np.argsort(-np.abs(places + 0.5 - middles[stretches]), kind="stable")
        probes[stretches[nearest_last]] = ranking[places[nearest_last]]
    return probes


def assign_routes(
    scores: np.ndarray, evidence: Evidence, budget_left: int, config: TriageConfig | None = None
) -> TriageResult:
    """
    Give every prompt a route; thresholds and shares are those of the `config`.

    The verified prompts calibrate the score (probe-calibrated triage, arXiv 2606.04503): along the ranking, the
    prefix where the policy is right with probability `tau_high` or more is the mastered zone, and the suffix where it
    is wrong more often than `tau_low` is the zone to annotate: there a majority vote would tend to be wrong too. (A
    vote is right at least as often as one response wherever wrong answers scatter, so that this asks for a label
    rather too often than too rarely.) Where all verified prompts were right, there must be enough of them: if so many
    would all be right in more than one of twenty pools that are right with probability `tau_high` only, no zone counts
    as mastered. Where the verified prompts show that the score does not separate right from wrong, the curve is one
    level and the ranking is replaced by a random one. What is known of a prompt itself goes before what its place in
    the ranking suggests:

    - a labelled prompt is trained on its label, unless it is in the mastered zone and was right, or a whole group of
      at least 4 rollouts was right;
    - labels are bought for unlabelled prompts of the zone to annotate and for those whose last group agreed too
      little, most uncertain first, as far as `budget_left` goes; the rest of them stays weak.

    With a `discard_ratio` the zones are shares of the ranking, as in the published comparison of scores: the lowest
    share counts as mastered, and labels are bought from the top down, whatever the verified prompts say.

    Args:
        scores (`np.ndarray` of shape `(num_prompts,)`):
            One finite score per prompt, higher = less sure.
        evidence ([`Evidence`]):
            What is known about each prompt.
        budget_left (`int`):
            Number of labels that may be bought now.
        config ([`TriageConfig`], *optional*):
            Thresholds, or the share to discard, in which case the thresholds are not used.

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
            # Drawn along the ranking, so that the order in which the pool comes still does not matter.
            ranking = np.random.default_rng(0).permutation(ranking)
        # NaN compares as False: without a verified prompt nothing is discarded and nothing need be annotated.
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
    # A poor vote says that a prompt is not mastered, whatever its place in the ranking.
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
    """Whether all verified prompts were right, which may be chance, as there are so few."""
    verified = pass_rate[np.isfinite(pass_rate)]
    return bool((verified >= tau_high).all()) and tau_high ** len(verified) > _CHANCE


def _prefix_length(condition: Sequence[bool] | np.ndarray) -> int:
    """Number of leading true values."""
    condition = np.asarray(condition, dtype=bool)
    return len(condition) if condition.all() else int(np.argmin(condition))
