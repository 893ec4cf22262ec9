"""Detects when a policy starts to optimise its own votes. Only numbers: knows no trainer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Number of annotated groups in each of the two windows that are compared. Pseudo-labelled groups are those of the same
# batches.
_WINDOW = 128
# Largest number of batches in a window. If few groups are annotated, older batches say nothing about the present.
_MAX_BATCHES = 4096
# Standard errors by which the rewards must have risen and the accuracy fallen. In simulated runs of 2,000 steps in
# which nothing changes (tests/test_collapse.py), this happens by chance in about one of forty. A collapse over 100
# steps is always detected, one over 300 steps nine times in ten.
_NUM_ERRORS = 2.5


class CollapseMonitor:
    """
    Compares rewards on pseudo-labels with accuracy on bought labels. Self-training collapses when the policy agrees
    with itself more and more while it is right less and less: rewards on pseudo-labels rise, and accuracy on annotated
    prompts falls. The monitor compares the batches with the latest 128 annotated groups with those of the 128 groups
    before. If both changes exceed 2.5 standard errors, pseudo-labels are paused until the accuracy has recovered. Runs
    with fewer than 256 annotated groups are too short for a decision.

    Attributes:
        is_paused (`bool`): whether pseudo-labels are paused.
        num_pauses (`int`): number of pauses so far.
        on_pause (`Callable[[str], None]` or `None`): called with the message of each pause when it begins.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self.num_pauses = 0
        self.on_pause: Callable[[str], None] | None = None
        # Per batch: number, sum and sum of squares, for pseudo-labelled groups and then for annotated groups.
        self._batches: list[list[float]] = []
        self._level = 0.0

    def update(self, weak: Sequence[float], verified: Sequence[float]) -> None:
        """
        Add the groups of a batch.

        Args:
            weak (`Sequence[float]`):
                For each pseudo-labelled group, the share of answers that match its pseudo-label, in `[0, 1]`.
            verified (`Sequence[float]`):
                For each annotated group, the share of answers that match the label, in `[0, 1]`.
        """
        self._batches.append([*_moments(weak), *_moments(verified)])
        self._batches = self._batches[-_MAX_BATCHES:]
        now, before = self._windows()
        if now is None or before is None:
            return
        if self.is_paused:
            if now[4] / now[3] >= self._level:
                logger.warning("Pseudo-labels go on: the accuracy on annotated prompts is back where it was.")
                self.is_paused, self._batches = False, []
        elif _change(before[:3], now[:3]) > _NUM_ERRORS and _change(before[3:], now[3:]) < -_NUM_ERRORS:
            self.is_paused = True
            self.num_pauses += 1
            self._level = float(before[4] / before[3])
            message = (
                f"Collapse: over the last {now[3]:.0f} annotated groups the rewards on pseudo-labels rose from "
                f"{before[1] / before[0]:.0%} to {now[1] / now[0]:.0%}, while the accuracy on annotated prompts fell "
                f"from {self._level:.0%} to {now[4] / now[3]:.0%}. Pseudo-labels are paused until it is back. Raise "
                "`min_agreement`, lower the learning rate, or annotate more."
            )
            logger.warning(message)
            if self.on_pause is not None:
                self.on_pause(message)

    def _windows(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Moments of the latest batches with `_WINDOW` annotated groups, and of the window before them."""
        batches = np.array(self._batches)
        from_end = np.cumsum(batches[::-1, 3])
        ends = [int(np.searchsorted(from_end, count)) + 1 for count in (_WINDOW, 2 * _WINDOW)]
        if ends[0] > len(batches):
            return None, None
        now = batches[-ends[0] :].sum(0)
        if ends[1] > len(batches):
            return now, None
        self._batches = self._batches[-ends[1] :]
        return now, batches[-ends[1] : -ends[0]].sum(0)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: plain numbers and lists."""
        return {
            "is_paused": self.is_paused,
            "num_pauses": self.num_pauses,
            "batches": list(self._batches),
            "level": self._level,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.is_paused, self.num_pauses = state["is_paused"], state["num_pauses"]
        self._batches, self._level = list(state["batches"]), state["level"]


def _moments(values: Sequence[float]) -> tuple[float, float, float]:
    array = np.asarray(values, float)
    return float(len(array)), float(array.sum()), float((array**2).sum())


def _change(before: np.ndarray, now: np.ndarray) -> float:
    """Change of the mean in standard errors, from counts, sums and sums of squares of two windows."""
    if min(before[0], now[0]) < 2:
        return 0.0
    means = [window[1] / window[0] for window in (before, now)]
    variances = [max(w[2] / w[0] - m**2, 0.0) / (w[0] - 1) for w, m in zip((before, now), means, strict=True)]
    difference, error = means[1] - means[0], sum(variances) ** 0.5
    # Without any variance, every change counts.
    return float(difference / error) if error > 0 else float(np.sign(difference) * np.inf if difference else 0.0)
