"""Turns rollouts into one score per prompt: traces them, estimates, and keeps what the first call calibrated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.utils import logging

from ..estimators import CalibratedEstimator, Estimator, PivotDensity, get_estimator
from ..tracing.rollout_pass import trace_rollouts
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from .survey import Responses


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PoolScores:
    """
    Scores of a set of prompts. Arrays have shape `(num_prompts,)`.

    Attributes:
        scores (`np.ndarray`, float): uncertainty, higher = less sure.
        densities (`np.ndarray`, float): pivots per response token; NaN for an empty response.
        traces (`list[ResponseTrace]`): traces from which the scores were made.
    """

    scores: np.ndarray
    densities: np.ndarray
    traces: list[ResponseTrace]


class PoolScorer:
    """
    Scores each prompt from one rollout. The first call chooses the heads and the pivot threshold. Later calls keep
    them, so that scores are comparable between epochs. An estimator that learns from the probe set is cross-fitted:
    the score of a probe never depends on its own label.

    Args:
        estimator ([`Estimator`] or `str`, *optional*):
            The score, see [`get_estimator`].
        pad_token_id (`int`):
            Padding token of the model.

    Attributes:
        heads (`dict[int, list[int]]` or `None`): traced query heads per layer index; `None` before the first call.
        needs (`frozenset[str]`): optional fields of [`ResponseTrace`] that the estimator reads.
        probes (`list[int]`): rows of the probe set from which the estimator learnt; empty if it does not learn.

    Example:
    ```python
    >>> scorer = PoolScorer(PivotDensity(), tokenizer.pad_token_id)
    >>> scorer(model, rollouts).scores
    array([0.12, 0.31, 0.07])
    ```
    """

    def __init__(self, estimator: Estimator | str | None, pad_token_id: int):
        self.estimator = get_estimator(estimator)
        self.needs = frozenset(self.estimator.needs)
        self.probes: list[int] = []
        self.density = PivotDensity()
        self.heads: dict[int, list[int]] | None = None
        self.is_fitted = False
        self._pad_token_id = pad_token_id

    def __call__(self, model: PreTrainedModel, rollouts: Sequence[Rollout], progress: bool = True) -> PoolScores:
        """
        Trace one rollout per prompt, sampled at temperature 1 or greedily, and score it, see [`~PoolScorer.fit`].

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The policy.
            rollouts (`Sequence[Rollout]`):
                One rollout per prompt.
            progress (`bool`, *optional*, defaults to `True`):
                Whether to show a progress bar.

        Returns:
            [`PoolScores`]: a prompt with an empty response gets the highest score of the others.

        Raises:
            ValueError: if all responses are empty, the estimator needs several responses per prompt, or it returns
                the wrong number of scores.
        """
        traces, heads = trace_rollouts(model, rollouts, self._pad_token_id, self.heads, self.needs, progress=progress)
        return self.fit(traces, heads)

    def fit(self, traces: Sequence[ResponseTrace], heads: dict[int, list[int]]) -> PoolScores:
        """
        Score traces. The first call fixes the heads, the pivot threshold, and what the estimator fits to a pool.

        Args:
            traces (`Sequence[ResponseTrace]`):
                One trace per prompt.
            heads (`dict[int, list[int]]`):
                Query heads per layer index that were traced.

        Returns:
            [`PoolScores`]
        """
        num_empty = sum(len(trace) <= 1 for trace in traces)
        if num_empty:
            logger.warning(f"{num_empty} of {len(traces)} responses are empty; they count as most uncertain.")
        if self.density.threshold is None:
            self.density = self.density.fit(traces)
        if not self.is_fitted:
            self.estimator, self.is_fitted, self.heads = self.estimator.fit(traces), True, heads
        return self.score(traces)

    def state_dict(self) -> dict[str, Any]:
        """
        What the first call fixed, and what was learnt from the probes.

        Returns:
            `dict[str, Any]`: plain values, if the fields of the estimator are plain values.
        """
        values = {field.name: getattr(self.estimator, field.name) for field in fields(self.estimator)}
        return {
            "estimator": {"name": type(self.estimator).__name__, "fields": values},
            "is_fitted": self.is_fitted,
            "probes": self.probes,
            "pivot_threshold": self.density.threshold,
            "heads": None if self.heads is None else [[layer, heads] for layer, heads in self.heads.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what `state_dict` returned.

        Args:
            state (`dict[str, Any]`):
                State of a scorer with an estimator of the same class.

        Raises:
            ValueError: if the estimator is of another class.
        """
        name, saved = type(self.estimator).__name__, state["estimator"]
        if saved["name"] != name:
            raise ValueError(
                f"The checkpoint was scored by {saved['name']}, but `estimator` is {name}. Resume with the same one."
            )
        self.estimator = replace(self.estimator, **saved["fields"])
        self.is_fitted, self.probes = state["is_fitted"], list(state["probes"])
        self.density = replace(self.density, threshold=state["pivot_threshold"])
        self.heads = None if state["heads"] is None else {layer: list(heads) for layer, heads in state["heads"]}

    def calibrate(self, rows: Sequence[int], traces: Sequence[ResponseTrace], was_right: np.ndarray) -> bool:
        """
        Let the estimator learn from the probe set, if it can.

        Args:
            rows (`Sequence[int]`):
                Rows of the probes.
            traces (`Sequence[ResponseTrace]`):
                Traces of the probes.
            was_right (`np.ndarray` of shape `(num_probes,)`, bool):
                Whether each response was right.

        Returns:
            `bool`: whether the estimator learnt, so that the pool has to be scored again.
        """
        shown = [place for place, trace in enumerate(traces) if len(trace) > 1]
        if not isinstance(self.estimator, CalibratedEstimator) or not shown:
            return False
        self.estimator = self.estimator.calibrate([traces[i] for i in shown], np.asarray(was_right)[shown])
        self.probes = [int(rows[i]) for i in shown]
        return True

    def score(
        self,
        traces: Sequence[ResponseTrace],
        others: np.ndarray | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> PoolScores:
        """
        Score traces with what the first call fixed.

        Args:
            traces (`Sequence[ResponseTrace]`):
                One trace per prompt. A trace of length 0 or 1 is an empty response and gets the highest score of the
                others: a model that stops at once has not answered, which is the opposite of mastery.
            others (`np.ndarray`, *optional*):
                Further scores that count for the highest score, besides those of `traces`.
            rows (`Sequence[int]`, *optional*):
                Row of each trace, by which probes are recognised. Defaults to the position of the trace.

        Returns:
            [`PoolScores`]

        Raises:
            ValueError: if the estimator returns the wrong number of scores.
        """
        scores = np.asarray(self.estimator(traces), dtype=float)
        if scores.shape != (len(traces),):
            raise ValueError(
                f"{type(self.estimator).__name__} returned scores of shape {scores.shape} for {len(traces)} "
                "responses; it must return one number each."
            )
        if isinstance(self.estimator, CalibratedEstimator):
            place = {row: place for place, row in enumerate(self.probes)}
            for i, row in enumerate(range(len(traces)) if rows is None else rows):
                if int(row) in place and len(traces[i]) > 1:
                    scores[i] = self.estimator.score_probe(place[int(row)], traces[i])
        densities = self.density(traces)
        is_empty = np.array([len(trace) <= 1 for trace in traces])
        # Only empty responses are filled in. NaN scores from a faulty estimator must not be hidden.
        if is_empty.any():
            known = scores[~is_empty] if others is None else np.concatenate([scores[~is_empty], others])
            scores = np.where(is_empty, known.max(), scores)
            densities = np.where(is_empty, np.nan, densities)
        return PoolScores(scores=scores, densities=densities, traces=list(traces))


class SurveyExaminer:
    """
    Checks the first responses for the router, see [`~routing.router.Examiner`]. `responses` is `None` if they are
    lost. `verify` says which responses match their bought labels, and `objection` why no more labels should be bought.

    Attributes:
        pool_scores ([`PoolScores`] or `None`): scores after the estimator last learnt from the probes; `None` if it
            does not learn.
    """

    def __init__(
        self,
        responses: Responses | None,
        scorer: PoolScorer,
        verify: Callable[[list[int]], list[bool]],
        objection: Callable[[], str | None] = lambda: None,
    ):
        self.objection = objection
        self.pool_scores: PoolScores | None = None
        self._responses, self._scorer, self._verify = responses, scorer, verify

    def verify(self, rows: list[int]) -> list[bool] | None:
        """Whether the first response to each row is right; `None` if the responses are lost."""
        return None if self._responses is None else self._verify(rows)

    def learn(self, rows: list[int], was_right: np.ndarray) -> np.ndarray | None:
        """Scores of all first responses after learning from these rows; `None` if the estimator does not learn."""
        traces = [] if self._responses is None else self._responses.traces
        if not traces or not self._scorer.calibrate(rows, [traces[row] for row in rows], was_right):
            return None
        self.pool_scores = self._scorer.score(traces)
        return self.pool_scores.scores
