"""What is known of a pool and what follows from it: buys probes, triages, buys labels, remembers the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers.utils import logging

from .calibration import Calibration
from .ledger import AnnotationLedger, Oracle
from .triage import Evidence, Route, TriageResult, assign_routes, choose_probes


logger = logging.get_logger(__name__)

# Probes by default: enough for a curve of a few steps, at most half of the budget.
_DEFAULT_NUM_PROBES = 32


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
    """

    probe_size: int | None = None
    tau_high: float = 0.85
    tau_low: float = 0.5
    min_agreement: float = 0.75

    def resolve_probe_size(self, budget: int, pool_size: int) -> int:
        """
        Number of probes for a budget (in labels) and a pool.

        Raises:
            ValueError: if `probe_size` exceeds the pool or the budget.
        """
        if self.probe_size is None:
            return max(1, min(_DEFAULT_NUM_PROBES, budget // 2))
        if not 1 <= self.probe_size <= min(budget, pool_size):
            raise ValueError(
                f"`probe_size` is {self.probe_size}, but must lie between 1 and the smaller of the annotation budget "
                f"({budget} labels) and the pool ({pool_size} prompts). Lower it, or raise the budget."
            )
        return self.probe_size


class PoolRouter:
    """
    Routes a pool and keeps the evidence from one routing to the next.

    Args:
        prompt_ids (`Sequence[str]`):
            Id of every prompt.
        ledger ([`AnnotationLedger`]):
            Where labels are bought and kept.
        oracle ([`Oracle`], *optional*):
            Who knows the labels. Without one nothing can be bought: the most uncertain prompts are put up for
            annotation as far as the budget goes, and nothing is discarded, since nothing was verified.
        config ([`TriageConfig`], *optional*):
            How to triage.

    Attributes:
        scores (`np.ndarray` of shape `(num_prompts,)`): latest uncertainty of each prompt.
        densities (`np.ndarray` of shape `(num_prompts,)`): latest pivot density of each prompt.
        evidence ([`Evidence`]): what was verified and voted so far.
        probes (`np.ndarray`, int): the probe set, empty before the first routing.
        routes (`np.ndarray` of shape `(num_prompts,)`, int8): latest route of each prompt.
        calibration ([`Calibration`]): of the latest routing, `None` before the first.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        ledger: AnnotationLedger,
        oracle: Oracle | None,
        config: TriageConfig | None = None,
    ):
        self.prompt_ids = list(prompt_ids)
        self.ledger = ledger
        self.oracle = oracle
        self.config = config or TriageConfig()
        self.probe_size = self.config.resolve_probe_size(ledger.budget, len(self.prompt_ids))
        self.scores = np.full(len(self.prompt_ids), np.nan)
        self.densities = np.full(len(self.prompt_ids), np.nan)
        self.evidence = Evidence.empty(len(self.prompt_ids))
        self.probes = np.zeros(0, int)
        self.routes = np.full(len(self.prompt_ids), Route.WEAK, np.int8)
        self.calibration: Calibration | None = None

    def update_scores(self, rows: Sequence[int] | np.ndarray, scores: np.ndarray, densities: np.ndarray) -> None:
        """Take over fresh scores and densities of the given rows (both of shape `(num_rows,)`)."""
        self.scores[rows] = scores
        self.densities[rows] = densities

    def update_votes(self, rows: Sequence[int], agreement: Sequence[float]) -> None:
        """Take over the agreement of each row's latest group, in `[0, 1]`."""
        self.evidence.agreement[list(rows)] = agreement

    def update_pass_rates(self, rows: Sequence[int], pass_rates: Sequence[float], num_rollouts: int) -> None:
        """Take over the share of right answers in each row's latest `num_rollouts` verified rollouts."""
        self.evidence.pass_rate[list(rows)] = pass_rates
        self.evidence.num_verified[list(rows)] = num_rollouts

    def first_routing(
        self,
        verify: Callable[[list[int]], list[bool]],
        buy: bool = True,
        rescore: Callable[[list[int], np.ndarray], np.ndarray | None] | None = None,
    ) -> TriageResult:
        """
        Buy the probe set, calibrate on it, and route the pool.

        Args:
            verify (`Callable[[list[int]], list[bool]]`):
                Tells for rows whose label was bought whether the scored response is right.
            buy (`bool`, *optional*, defaults to `True`):
                Whether to buy the labels that triage asks for as well, not only the probes.
            rescore (`Callable[[list[int], np.ndarray], np.ndarray | None]`, *optional*):
                Takes the probes whose label could be had and whether each was right; returns new scores of all
                prompts if that taught it better ones.

        Returns:
            [`TriageResult`]
        """
        self.probes = choose_probes(self.scores, self.probe_size)
        if self.oracle is None:
            return self._route_by_budget()
        self._buy(self.probes, "probe", epoch=0)
        self._verify_new(verify)
        verified = self.probes[np.isfinite(self.evidence.pass_rate[self.probes])]
        if rescore is not None and len(verified):
            scores = rescore(verified.tolist(), self.evidence.pass_rate[verified] > 0.5)
            self.scores = self.scores if scores is None else scores
        result = self.route(epoch=0, buy=buy)
        self._verify_new(verify)
        return result

    def route(self, epoch: int, buy: bool = True) -> TriageResult:
        """
        Route the pool from what is known now, and spend what is left of the budget where triage asks for it.

        Args:
            epoch (`int`):
                Epoch that is about to begin, for the ledger.
            buy (`bool`, *optional*, defaults to `True`):
                Whether to buy the labels.

        Returns:
            [`TriageResult`]: prompts for which no label could be had are weak.
        """
        result = assign_routes(
            self.scores,
            self.evidence,
            self.ledger.num_left,
            tau_high=self.config.tau_high,
            tau_low=self.config.tau_low,
            min_agreement=self.config.min_agreement,
        )
        self.calibration = result.calibration
        if result.calibration.is_flat:
            logger.warning(
                "This score does not separate your pool: among the verified prompts, those answered wrongly rank no "
                f"higher than the others (AUROC {result.calibration.separation:.2f}, 0.5 is chance). Prompts to "
                "annotate are drawn at random. Try another `estimator`, or a larger `probe_size`."
            )
        if buy and len(result.to_buy):
            self._buy(result.to_buy, "annotate", epoch)
            result.routes[result.to_buy[~self.evidence.is_labelled[result.to_buy]]] = Route.WEAK
        self.routes = result.routes
        return result

    def _buy(self, rows: np.ndarray, purpose: str, epoch: int) -> None:
        if self.oracle is None:
            raise RuntimeError(f"{len(rows)} labels are wanted, but there is no `oracle` to buy from. Pass one.")
        try:
            self.ledger.buy([self.prompt_ids[row] for row in rows], self.oracle, purpose, epoch)
        finally:
            # Also after an annotator failed half way: what it had returned is in the ledger.
            for row, identity in enumerate(self.prompt_ids):
                self.evidence.is_labelled[row] = self.ledger.label(identity) is not None

    def _verify_new(self, verify: Callable[[list[int]], list[bool]]) -> None:
        rows = np.flatnonzero(self.evidence.is_labelled & (self.evidence.num_verified == 0)).tolist()
        if rows:
            self.update_pass_rates(rows, [float(right) for right in verify(rows)], num_rollouts=1)

    def _route_by_budget(self) -> TriageResult:
        result = assign_routes(self.scores, self.evidence, budget_left=0)
        is_probe = np.isin(result.ranking, self.probes)
        most_uncertain_first = result.ranking[~is_probe][::-1]
        rows = np.concatenate([self.probes, most_uncertain_first[: self.ledger.budget - len(self.probes)]])
        result.routes[rows] = Route.ANNOTATE
        self.routes = result.routes
        return result
