"""Routes a pool: buys the probe set, triages, buys labels, and keeps the evidence."""

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
    """Checks the policy's first responses for the router, and guards the budget."""

    def verify(self, rows: list[int]) -> list[bool] | None:
        """Whether the first response to each row matches its bought label; `None` if the responses are lost."""
        ...

    def learn(self, rows: list[int], was_right: np.ndarray) -> np.ndarray | None:
        """Scores of all first responses after learning from these rows; `None` if the estimator does not learn."""
        ...

    def objection(self) -> str | None:
        """The reason why no more labels should be bought now, given what was verified; `None` if there is none."""
        ...


class PoolRouter:
    """
    Routes a pool and keeps the evidence from one routing to the next.

    Args:
        prompt_ids (`Sequence[str]`):
            Id of every prompt.
        ledger ([`AnnotationLedger`]):
            Buys and stores labels. In a process that does not route, a view of it.
        oracle ([`Oracle`]):
            Source of labels. A prompt that it does not answer is trained on votes until it does.
        config ([`TriageConfig`], *optional*):
            Settings of the triage.
        rows (`Callable[[Sequence[int]], Iterable[dict]]`, *optional*):
            Returns what the oracle may see of the given rows: `prompt` and the free columns.
        texts (`Callable[[Sequence[int]], Iterable[str]]`, *optional*):
            Returns the questions of the given rows, for people.

    Attributes:
        scores (`np.ndarray` of shape `(num_prompts,)`, float): latest uncertainty score of each prompt.
        densities (`np.ndarray` of shape `(num_prompts,)`, float): latest pivot density of each prompt, in pivots per
            response token.
        evidence ([`Evidence`]): what was verified and voted so far.
        probes (`np.ndarray` of shape `(num_probes,)`, int): the probe set, empty before the first routing.
        routes (`np.ndarray` of shape `(num_prompts,)`, int8): latest route of each prompt.
        plan (`np.ndarray` of shape `(num_prompts,)`, int8): the routes at the start of the current epoch, which
            determine its order.
        values ([`LabelValues`]): value of the label of each prompt.
        buys_after (`bool`): whether routing buys only the probes, and [`GroupBuyer`] spends the rest. Defaults to
            `False`.
        suggestions (`dict[int, str]`): the policy's own answer to each prompt that has one, by row.
        start (`int`): latest event of the ledger when the run began.
        is_traced (`np.ndarray` of shape `(num_prompts,)`, bool): whether the score is from a training rollout.
        is_declined (`np.ndarray` of shape `(num_prompts,)`, bool): whether the run asked for the label without
            success. A resumed run does not know of later declines, so that it makes the same choices again.
        first_outcomes (`np.ndarray` of shape `(num_prompts,)`, int8): 1 if the first response was right, 0 if it was
            wrong, -1 if that is not known.
        num_examined (`int`): number of probes from which the score has learnt.
        num_routings (`int`): number of routings so far.
        calibration ([`Calibration`]): calibration of the latest routing, `None` before the first.
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
        """Whether labels come from people, through the ledger, rather than at once."""
        return isinstance(self.oracle, People)

    def label(self, row: int) -> dict[str, Any] | None:
        """The label of a row if it is known at this point of the run, otherwise `None`."""
        return self.ledger.label(self.prompt_ids[row]) if self.evidence.is_labelled[row] else None

    def state_dict(self) -> dict[str, Any]:
        """
        State from which another process, or a resumed run, can go on.

        Returns:
            `dict[str, Any]`: plain values, and arrays with one entry per prompt; no texts.
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
        Restore what `state_dict` returned. The state says which labels were known; the labels themselves come from the
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
        Summarise the run so far.

        Returns:
            `dict[str, Any]`: `pool_size` (prompts), `annotation_budget` (labels), `annotated` (labels bought),
            `routes` (prompts per route, `{"discard": n, "weak": n, "annotate": n}`; all weak before the first
            routing), `probes` (labels spent on calibration), `num_routings`.
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
        """Scalars to log after a routing, including those of its calibration."""
        metrics: dict[str, float] = {"labels_bought": self.ledger.num_bought, "labels_left": self.ledger.num_left}
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
        """Set scores and densities of the given rows (both of shape `(num_rows,)`)."""
        self.scores[rows] = scores
        self.densities[rows] = densities

    def update_traced(self, rows: Sequence[int] | np.ndarray, scores: np.ndarray, densities: np.ndarray) -> None:
        """Set scores and densities of training rollouts, which those of first responses do not replace."""
        self.update_scores(rows, scores, densities)
        self.is_traced[rows] = True

    def update_votes(
        self, rows: Sequence[int], agreement: Sequence[float], answers: Sequence[str | None] | None = None
    ) -> None:
        """Set the agreement of each row's latest group, in `[0, 1]`, and its majority answer."""
        self.evidence.agreement[list(rows)] = agreement
        self.suggestions.update({row: answer for row, answer in zip(rows, answers or (), strict=False) if answer})

    def update_pass_rates(
        self, rows: Sequence[int] | np.ndarray, pass_rates: Sequence[float] | np.ndarray, num_rollouts: int
    ) -> None:
        """Set the share of right answers, in `[0, 1]`, among each row's latest `num_rollouts` verified rollouts."""
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
                Whether to also buy the labels that triage asks for, besides the probes.

        Returns:
            [`TriageResult`]
        """
        self.num_routings = 0
        if self.probe_size:
            # Probes of an earlier routing, by a triage for example, are probes again. Labels that are already known
            # serve as probes too.
            known = self.ledger.probe_ids | self.ledger.own_ids
            is_known = np.array([identity in known for identity in self.prompt_ids], bool)
            self.probes = choose_probes(self.scores, self.probe_size, is_known)
        self.request(self.probes, epoch=0, replaces=False)
        self._collect(examiner, self.probes, routing=-1)
        return self.route(0, examiner, buy)

    def route(self, epoch: int, examiner: Examiner, buy: bool = True) -> TriageResult:
        """
        Route the pool by the current evidence, and ask for the labels that triage wants, as far as the budget goes.

        Args:
            epoch (`int`):
                Epoch that is about to begin, recorded in the ledger.
            examiner ([`Examiner`]):
                See [`~PoolRouter.first_routing`].
            buy (`bool`, *optional*, defaults to `True`):
                Whether to get the labels now. Otherwise they are asked for, and stay in the queue.

        Returns:
            [`TriageResult`]: prompts whose label was wanted but not given are weak. If `buy` is `False`, they keep the
            route `ANNOTATE`.
        """
        self._account.refresh()
        self._update_labels(examiner, routing=epoch - 1)
        if self.asks_people:  # people may decline at any time
            self.is_declined[:] = [self.ledger.has_declined(identity) for identity in self.prompt_ids]
        pending = np.array([row for row in self.probes if self.can_be_answered(row)], int)
        # Labels that an interrupted run bought after this point are already paid for.
        num_paid = self.ledger.num_paid(epoch - 1, self.start)
        budget_left = 0 if self.buys_after else max(self.ledger.budget - num_paid - len(pending), 0)
        if budget_left and (objection := examiner.objection()) is not None:
            logger.warning(
                f"No more labels are bought for now, and {budget_left} of the budget are left: {objection}. The next "
                "routing looks again, at what training has shown by then."
            )
            budget_left = 0
        # Before the first answer nothing is calibrated, so the whole pool may be asked for.
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
        # Prompts that were declined, or are asked for anyway, must not use up the budget of other prompts.
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
        """Fix the current routes as the plan of the epoch that begins."""
        self.plan = self.routes.copy()

    def mark_labelled(self, rows: Sequence[int]) -> None:
        """Record that the labels of these rows were bought after the routing."""
        self.evidence.is_labelled[list(rows)] = True
        self.routes[list(rows)] = Route.ANNOTATE

    def worth_asking(self, rows: np.ndarray) -> np.ndarray:
        """The given rows whose label has a positive value now, most valuable first."""
        values = self.values.of(rows, self.evidence.agreement[rows])
        # A unanimous group has no gradient, whether it is right or wrong.
        return rows[np.argsort(-values, kind="stable")][: int((values > 0).sum())]

    def can_be_answered(self, row: int) -> bool:
        """Whether the label of a row is unknown, and was not declined."""
        return not self.evidence.is_labelled[row] and not self.ledger.has_declined(self.prompt_ids[row])

    def request(self, rows: np.ndarray, epoch: int, replaces: bool = True) -> None:
        """Ask for the labels of rows that can be answered. Other open queries are withdrawn if `replaces`."""
        rows = np.array([row for row in rows if self.can_be_answered(row)], int)
        texts: Iterable[str | None] = [None] * len(rows) if self._texts is None else self._texts(rows.tolist())
        probes = set(self.probes.tolist())
        agreement, values = self.evidence.agreement[rows], np.full(len(rows), np.nan)
        if self.asks_people or self.buys_after:
            # A probe has no value of its own, as its purpose is calibration.
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
        """Get the labels that were asked for, as far as the oracle, or people meanwhile, have answered."""
        try:
            self.buy(wanted.tolist())
        finally:
            # Even if an annotator failed half way: what it returned before is in the ledger.
            self._update_labels(examiner, routing, wanted)

    def buy(self, rows: Sequence[int]) -> None:
        """Let the oracle answer the open queries of these rows."""
        row_of, read = {self.prompt_ids[row]: row for row in rows}, self._rows
        known = None if read is None else lambda ids: read([row_of[i] for i in ids])
        self._account.buy(self.oracle, known, among=row_of)
        self._account.refresh()
        self.is_declined[list(row_of.values())] = [self.ledger.has_declined(identity) for identity in row_of]

    def _update_labels(self, examiner: Examiner, routing: int, wanted: Sequence[int] | np.ndarray = ()) -> None:
        """Read the labels that were bought up to a routing (-1: the probe set), and all labels of `wanted`."""
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
        """The ledger, if this process can write to it; otherwise raises `RuntimeError`."""
        if not isinstance(self.ledger, AnnotationLedger):
            raise RuntimeError("A view of a ledger cannot buy labels. Route in the process that opened the ledger.")
        return self.ledger


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
