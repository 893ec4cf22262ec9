"""Collects scores of training rollouts until all processes merge them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..processes import Processes
from ..routing.router import PoolRouter
from ..scoring.scorer import PoolScorer
from ..tracing.trace import ResponseTrace


class FreshScores:
    """Collects scores in each process. The plan of the current epoch does not change meanwhile."""

    def __init__(self, router: PoolRouter, scorer: PoolScorer, processes: Processes):
        self._router, self._scorer, self._processes = router, scorer, processes
        # Row of the pool -> (step, score, density).
        self._scores: dict[int, tuple[int, float, float]] = {}

    def add(self, rows: Sequence[int], traces: Sequence[ResponseTrace], step: int) -> None:
        """Score rollouts that this process traced at a training step, one rollout per row of the pool."""
        # With `mask_truncated_completions`, TRL masks completions that were cut off, so there is nothing to score.
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
        """Merge the scores of all processes since the last call, keeping the latest of each row. All must call it."""
        merged: dict[int, tuple[int, float, float]] = {}
        for share in self._processes.gather(self._scores):
            for row, scored in share.items():
                merged[row] = max(merged.get(row, scored), scored, key=lambda entry: entry[0])
        self.clear()
        if merged:
            _, scores, densities = zip(*merged.values(), strict=True)
            self._router.update_traced(list(merged), np.array(scores), np.array(densities))

    def clear(self) -> None:
        """Drop the scores that were not merged."""
        self._scores = {}
