"""What is known of a pool and what follows from it: buys probes, triages, buys labels, remembers the evidence."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from transformers.utils import logging

from ..labels.ledger import AnnotationLedger
from ..labels.queries import Oracle, Query
from ..labels.state import LedgerView
from ..labels.waiting import People
from .calibration import Calibration
from .triage import Evidence, Route, TriageConfig, TriageResult, assign_routes, choose_probes, count_routes
from .value import LabelValues


logger = logging.get_logger(__name__)


class Examiner(Protocol):
    """What the router asks of the policy's first responses, and of who watches over the budget."""

    def verify(self, rows: list[int]) -> list[bool] | None:
        """Whether the first response to each row is right, by its bought label; `None` if the responses are lost."""
        ...

    def learn(self, rows: list[int], was_right: np.ndarray) -> np.ndarray | None:
        """New scores of all first responses by what these rows teach; `None` if they teach nothing."""
        ...

    def objection(self) -> str | None:
        """Why no more labels are to be bought now, by what is verified; `None` if nothing speaks against it."""
        ...


class PoolRouter:
    """
    Routes a pool and keeps the evidence from one routing to the next.

    Args:
        prompt_ids (`Sequence[str]`):
            Id of every prompt.
        ledger ([`AnnotationLedger`]):
            Where labels are bought and kept; in a process that does not route, a view of it.
        oracle ([`Oracle`]):
            Who knows the labels. What it does not answer is trained on votes until it does.
        config ([`TriageConfig`], *optional*):
            How to triage.
        rows (`Callable[[Sequence[int]], Iterable[dict]]`, *optional*):
            Returns what the oracle may know of the given rows: `prompt` and the free columns.
        texts (`Callable[[Sequence[int]], Iterable[str]]`, *optional*):
            Returns the questions of the given rows, for people.

    Attributes:
        scores (`np.ndarray` of shape `(num_prompts,)`): latest uncertainty of each prompt.
        densities (`np.ndarray` of shape `(num_prompts,)`): latest pivot density of each prompt.
        evidence ([`Evidence`]): what was verified and voted so far.
        probes (`np.ndarray`, int): the probe set, empty before the first routing.
        routes (`np.ndarray` of shape `(num_prompts,)`, int8): latest route of each prompt.
        plan (`np.ndarray` of shape `(num_prompts,)`, int8): the routes when the running epoch began, which its order
            follows.
        values ([`LabelValues`]): what the label of each prompt is worth.
        buys_after (`bool`): whether routing buys the probes only, and [`GroupBuyer`] spends what is left; not by
            default.
        suggestions (`dict[int, str]`): the policy's own answer of each prompt that has one.
        start (`int`): latest event of the ledger when the run began.
        is_traced (`np.ndarray` of shape `(num_prompts,)`, bool): whether the score is of a rollout of training.
        is_declined (`np.ndarray` of shape `(num_prompts,)`, bool): whether the run asked for the label in vain. A run
            that is resumed does not know what was declined later on, so that it comes to the same choice.
        first_outcomes (`np.ndarray` of shape `(num_prompts,)`, int8): 1 where the first response was right, 0 where it
            was wrong, -1 where that is not known.
        num_examined (`int`): probes from which the score has learnt.
        num_routings (`int`): how often the pool was routed.
        calibration ([`Calibration`]): of the latest routing, `None` before the first.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        ledger: LedgerView,
        oracle: Oracle,
        config: TriageConfig | None = None,
        rows: Callable[[Sequence[int]], Iterable[dict[str, Any]]] | None = None,
        texts: Callable[[Sequence[int]], Iterable[str]] | None = None,
    ):
        self.prompt_ids = list(prompt_ids)
        self.ledger = ledger
        self.oracle = oracle
        self.config = config or TriageConfig()
        self.probe_size = self.config.resolve_probe_size(ledger.budget, len(prompt_ids), len(ledger.own_ids))
        self.scores = np.full(len(self.prompt_ids), np.nan)
        self.densities = np.full(len(self.prompt_ids), np.nan)
        self.evidence = Evidence.empty(len(self.prompt_ids))
        self.probes = np.zeros(0, int)
        self.routes = np.full(len(self.prompt_ids), Route.WEAK, np.int8)
        self.plan = self.routes.copy()
        self.values = LabelValues(len(self.prompt_ids))
        self.buys_after = False
        self.suggestions: dict[int, str] = {}
        self.calibration: Calibration | None = None
        self.start = ledger.last_event
        self._rows, self._texts = rows, texts
        self.is_traced = np.zeros(len(self.prompt_ids), bool)
        self.is_declined = np.zeros(len(self.prompt_ids), bool)
        self.first_outcomes = np.full(len(self.prompt_ids), -1, np.int8)
        self.num_examined, self.num_routings = 0, 0

    @property
    def asks_people(self) -> bool:
        """Whether labels come through the ledger, now or later, and not at once."""
        return isinstance(self.oracle, People)

    def label(self, row: int) -> dict[str, Any] | None:
        """The label of a row if it was bought and is known at this point of the run, else `None`."""
        return self.ledger.label(self.prompt_ids[row]) if self.evidence.is_labelled[row] else None

    def state_dict(self) -> dict[str, Any]:
        """
        What another process, or a run that is resumed, needs to go on from here.

        Returns:
            `dict[str, Any]`: plain values, and arrays with one entry a prompt; no texts.
        """
        return {
            "route": self.routes,
            "plan": self.plan,
            **self.values.state_dict(),
            "score": self.scores,
            "pivot_density": self.densities,
            "is_traced": self.is_traced,
            "is_declined": self.is_declined,
            "is_labelled": self.evidence.is_labelled,
            "pass_rate": self.evidence.pass_rate,
            "num_verified": self.evidence.num_verified,
            "agreement": self.evidence.agreement,
            "first_outcome": self.first_outcomes,
            "probes": self.probes.tolist(),
            "num_examined": self.num_examined,
            "num_routings": self.num_routings,
            "start": self.start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from what `state_dict` returned. It tells which labels were known, not what they are: those come from the
        ledger.

        Args:
            state (`dict[str, Any]`):
                State of a router of the same pool.
        """
        self.routes, self.plan = np.array(state["route"], np.int8), np.array(state["plan"], np.int8)
        self.values.load_state_dict(state)
        self.scores, self.densities = np.array(state["score"], float), np.array(state["pivot_density"], float)
        self.is_traced, self.is_declined = np.array(state["is_traced"], bool), np.array(state["is_declined"], bool)
        self.evidence = Evidence(
            is_labelled=np.array(state["is_labelled"], bool),
            pass_rate=np.array(state["pass_rate"], float),
            num_verified=np.array(state["num_verified"], int),
            agreement=np.array(state["agreement"], float),
        )
        self.first_outcomes = np.array(state["first_outcome"], np.int8)
        self.probes = np.array(state["probes"], int)
        self.num_examined, self.num_routings = state["num_examined"], state["num_routings"]
        self.start = state["start"]

    def summary(self) -> dict[str, Any]:
        """
        What was done so far.

        Returns:
            `dict[str, Any]`: `pool_size`, `annotation_budget` (labels), `annotated` (labels bought), `routes`
            (`{"discard": n, "weak": n, "annotate": n}`, all weak before the first routing), `probes` (labels spent on
            calibration), `num_routings`.
        """
        return {
            "pool_size": len(self.prompt_ids),
            "annotation_budget": self.ledger.budget,
            "annotated": self.ledger.num_bought,
            "routes": count_routes(self.routes),
            "probes": len(self.probes),
            "num_routings": self.num_routings,
        }

    def metrics(self) -> dict[str, float]:
        """Numbers to log after a routing; those of the calibration where the pool was routed."""
        metrics: dict[str, float] = {"labels_bought": self.ledger.num_bought, "budget_left": self.ledger.num_left}
        for route in Route:
            name, is_here = route.name.lower(), self.routes == route
            metrics[f"num_{name}"] = int(is_here.sum())
            if np.isfinite(self.densities[is_here]).any():
                metrics[f"density_{name}"] = float(np.nanmean(self.densities[is_here]))
        if self.calibration is not None:
            calibrated = {"calibration_error": self.calibration.error, "score_auroc": self.calibration.separation}
            metrics |= {name: value for name, value in calibrated.items() if np.isfinite(value)}
        return metrics

    def update_scores(self, rows: Sequence[int] | np.ndarray, scores: np.ndarray, densities: np.ndarray) -> None:
        """Take over fresh scores and densities of the given rows (both of shape `(num_rows,)`)."""
        self.scores[rows] = scores
        self.densities[rows] = densities

    def update_traced(self, rows: Sequence[int] | np.ndarray, scores: np.ndarray, densities: np.ndarray) -> None:
        """Take over scores and densities of rollouts of training, which those of first responses do not replace."""
        self.update_scores(rows, scores, densities)
        self.is_traced[rows] = True

    def update_votes(
        self, rows: Sequence[int], agreement: Sequence[float], answers: Sequence[str | None] | None = None
    ) -> None:
        """Take over the agreement of each row's latest group, in `[0, 1]`, and its majority answer."""
        self.evidence.agreement[list(rows)] = agreement
        self.suggestions.update({row: answer for row, answer in zip(rows, answers or (), strict=False) if answer})

    def update_pass_rates(
        self, rows: Sequence[int] | np.ndarray, pass_rates: Sequence[float] | np.ndarray, num_rollouts: int
    ) -> None:
        """Take over the share of right answers in each row's latest `num_rollouts` verified rollouts."""
        self.evidence.pass_rate[rows] = pass_rates
        self.evidence.num_verified[rows] = num_rollouts

    def first_routing(self, examiner: Examiner, buy: bool = True) -> TriageResult:
        """
        Buy the probe set, calibrate on it, and route the pool.

        Args:
            examiner ([`Examiner`]):
                Tells which first responses are right, learns from the probes (again when more of them are known), and
                may object to buying more.
            buy (`bool`, *optional*, defaults to `True`):
                Whether to buy the labels that triage asks for as well, not only the probes.

        Returns:
            [`TriageResult`]
        """
        self.num_routings = 0
        if self.probe_size:
            # What was asked for before, by a triage say, is a probe again, and labels that one has are as good.
            known = self.ledger.probe_ids | self.ledger.own_ids
            is_known = np.array([identity in known for identity in self.prompt_ids], bool)
            self.probes = choose_probes(self.scores, self.probe_size, is_known)
        self.request(self.probes, epoch=0, replaces=False)
        self._collect(examiner, self.probes, routing=-1)
        return self.route(0, examiner, buy)

    def route(self, epoch: int, examiner: Examiner, buy: bool = True) -> TriageResult:
        """
        Route the pool from what is known now, and ask for labels where triage wants them, as far as the budget goes.

        Args:
            epoch (`int`):
                Epoch that is about to begin, for the ledger.
            examiner ([`Examiner`]):
                See [`~PoolRouter.first_routing`].
            buy (`bool`, *optional*, defaults to `True`):
                Whether to get the labels now; otherwise they are asked for and stay in the queue.

        Returns:
            [`TriageResult`]: prompts whose label was wanted but could not be had are weak; they are marked for
            annotation if `buy` is `False`.
        """
        self._account.refresh()
        self._update_labels(examiner, routing=epoch - 1)
        if self.asks_people:  # who say so at any time
            self.is_declined[:] = [self.ledger.has_declined(identity) for identity in self.prompt_ids]
        pending = np.array([row for row in self.probes if self.can_be_answered(row)], int)
        # What an interrupted run bought beyond this point is paid for, and is not paid for again.
        num_paid = self.ledger.num_paid(epoch - 1, self.start)
        budget_left = 0 if self.buys_after else max(self.ledger.budget - num_paid - len(pending), 0)
        if budget_left and (objection := examiner.objection()) is not None:
            logger.warning(
                f"No more labels are bought for now, and {budget_left} of the budget are left: {objection}. The next "
                "routing looks again, at what training has shown by then."
            )
            budget_left = 0
        # Before the first answer there is nothing to triage by: the whole pool is in question.
        is_blind = self.asks_people and not self.evidence.is_labelled.any()
        most = len(self.scores) if budget_left and not is_blind else 0
        result = assign_routes(self.scores, self.evidence, most, self.config)
        self.calibration = result.calibration
        self.values.update_ranking(result.ranking, result.calibration.curve)
        if result.calibration.is_flat and self.config.discard_ratio is None:
            logger.warning(
                "This score does not separate your pool: among the verified prompts, those answered wrongly rank no "
                f"higher than the others (AUROC {result.calibration.separation:.2f}, 0.5 is chance). Prompts to "
                "annotate are drawn at random. Try another `estimator`, or a larger `probe_size`."
            )
        result.routes[result.to_buy] = Route.WEAK
        candidates = result.ranking[::-1] if is_blind else result.to_buy
        # What nobody answers, or is asked for anyway, must not take a place that the budget has for another.
        candidates = candidates[~self.is_declined[candidates] & ~np.isin(candidates, pending)]
        others = (self.worth_asking(candidates) if self.asks_people else candidates)[:budget_left]
        result = replace(result, to_buy=others)
        wanted = np.concatenate([pending, others])
        result.routes[wanted] = [Route.ANNOTATE if self.can_be_answered(row) else Route.WEAK for row in wanted]
        self.request(wanted, epoch)
        if buy:
            self._collect(examiner, wanted, routing=epoch)
            result.routes[wanted[~self.evidence.is_labelled[wanted]]] = Route.WEAK
        self.routes = result.routes
        self.keep_routes()
        self.num_routings += 1
        return result

    def keep_routes(self) -> None:
        """Let the order of the epoch that begins follow the routes as they are."""
        self.plan = self.routes.copy()

    def mark_labelled(self, rows: Sequence[int]) -> None:
        """Take up that the labels of rows were bought since the routing."""
        self.evidence.is_labelled[list(rows)] = True
        self.routes[list(rows)] = Route.ANNOTATE

    def worth_asking(self, rows: np.ndarray) -> np.ndarray:
        """Those of the given rows whose label is worth something now, most valuable first."""
        values = self.values.of(rows, self.evidence.agreement[rows])
        # Groups that are of one mind teach nothing either way, right or wrong.
        return rows[np.argsort(-values, kind="stable")][: int((values > 0).sum())]

    def can_be_answered(self, row: int) -> bool:
        """Whether the label of a row is not there, and nobody has declined to give it."""
        return not self.evidence.is_labelled[row] and not self.ledger.has_declined(self.prompt_ids[row])

    def request(self, rows: np.ndarray, epoch: int, replaces: bool = True) -> None:
        """Ask for the labels of rows that can be answered; unless it `replaces`, the queue keeps what it has."""
        rows = np.array([row for row in rows if self.can_be_answered(row)], int)
        texts: Iterable[str | None] = [None] * len(rows) if self._texts is None else self._texts(rows.tolist())
        probes = set(self.probes.tolist())
        agreement, values = self.evidence.agreement[rows], np.full(len(rows), np.nan)
        if self.asks_people or self.buys_after:
            # What a probe is worth is that it calibrates, wherever it stands.
            values = np.where(np.isin(rows, self.probes), np.nan, self.values.of(rows, agreement))
        queries = [
            Query(
                self.prompt_ids[row],
                text,
                "probe" if row in probes else "annotate",
                Route(self.routes[row]).name.lower(),
                _known(self.scores[row]),
                self.suggestions.get(int(row)),
                _known(agreement[place]),
                _known(values[place]),
            )
            for place, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        self._account.request(queries, epoch, replaces)

    def _collect(self, examiner: Examiner, wanted: np.ndarray, routing: int) -> None:
        """Get what was asked for, as far as the oracle, and people meanwhile, have answered."""
        try:
            self.buy(wanted.tolist())
        finally:
            # Also after an annotator failed half way: what it had returned is in the ledger.
            self._update_labels(examiner, routing, wanted)

    def buy(self, rows: Sequence[int]) -> None:
        """Let the oracle answer what was asked for of these rows."""
        row_of, read = {self.prompt_ids[row]: row for row in rows}, self._rows
        known = None if read is None else lambda ids: read([row_of[i] for i in ids])
        self._account.buy(self.oracle, known, among=row_of)
        self._account.refresh()
        self.is_declined[list(row_of.values())] = [self.ledger.has_declined(identity) for identity in row_of]

    def _update_labels(self, examiner: Examiner, routing: int, wanted: Sequence[int] | np.ndarray = ()) -> None:
        """Take up the labels that were bought up to a routing (-1: the probe set), and those of `wanted` at once."""
        known = [self.ledger.is_known(identity, routing, self.start) for identity in self.prompt_ids]
        self.evidence.is_labelled[:] = known
        for row in wanted:
            self.evidence.is_labelled[row] |= self.ledger.label(self.prompt_ids[row]) is not None
        rows = np.flatnonzero(self.evidence.is_labelled & (self.evidence.num_verified == 0))
        if len(rows):
            outcomes = examiner.verify(rows.tolist())
            if outcomes is None:
                return
            self.first_outcomes[rows] = outcomes
            self.update_pass_rates(rows, np.array(outcomes, float), num_rollouts=1)
        is_examined = self.evidence.is_labelled[self.probes] & (self.first_outcomes[self.probes] >= 0)
        probes = self.probes[is_examined]
        if len(probes) > self.num_examined:
            self.num_examined = len(probes)
            scores = examiner.learn(probes.tolist(), self.first_outcomes[probes] == 1)
            if scores is not None:
                self.scores = np.where(self.is_traced, self.scores, scores)

    @property
    def _account(self) -> AnnotationLedger:
        """The ledger, where it can be written to."""
        if not isinstance(self.ledger, AnnotationLedger):
            raise RuntimeError("A view of a ledger cannot buy labels. Route in the process that opened the ledger.")
        return self.ledger


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
