"""Scores of the rollouts that training traces, until all processes take them over together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..processes import Processes
from ..routing.router import PoolRouter
from ..scoring.scorer import PoolScorer
from ..tracing.trace import ResponseTrace


class FreshScores:
    """Collects scores in each process; the plan of the running epoch is frozen and stays."""

    def __init__(self, router: PoolRouter, scorer: PoolScorer, processes: Processes):
        self._router, self._scorer, self._processes = router, scorer, processes
        # Row of the pool -> (step, score, density).
        self._scores: dict[int, tuple[int, float, float]] = {}

    def add(self, rows: Sequence[int], traces: Sequence[ResponseTrace], step: int) -> None:
        """Score rollouts that this process traced at a step of training, one for each row of the pool."""
        # With `mask_truncated_completions`, TRL blanks completions that were cut off: there is nothing to score.
        shown = [i for i, trace in enumerate(traces) if len(trace) > 0]
        if not shown:
            return
        shown_rows = [rows[i] for i in shown]
        # The reward functions have voted on the group before its loss is computed.
        agreement = self._router.evidence.agreement
        shown_traces = [replace(traces[i], agreement=float(agreement[rows[i]])) for i in shown]
        scored = self._scorer.score(shown_traces, self._router.scores, shown_rows)
        for row, score, density in zip(shown_rows, scored.scores, scored.densities, strict=True):
            self._scores[row] = (step, float(score), float(density))

    def merge(self) -> None:
        """Take over the scores of all processes since the last time, the latest of each row; all processes call it."""
        merged: dict[int, tuple[int, float, float]] = {}
        for share in self._processes.gather(self._scores):
            for row, scored in share.items():
                merged[row] = max(merged.get(row, scored), scored, key=lambda entry: entry[0])
        self.clear()
        if merged:
            _, scores, densities = zip(*merged.values(), strict=True)
            self._router.update_traced(list(merged), np.array(scores), np.array(densities))

    def clear(self) -> None:
        """Forget what was not taken over."""
        self._scores = {}
