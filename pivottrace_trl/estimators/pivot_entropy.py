"""Pivots weighted by the model's hesitation."""

from ..tracing.pivots import find_pivots
from ..tracing.trace import ResponseTrace
from .pivot_score import PivotScore


class PivotEntropy(PivotScore):
    """
    Entropy in nats summed over the pivots of a response: weighs the tokens where the model both moves its attention
    and hesitates. This weighting is ours; it is not in arXiv 2606.04503.
    """

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return the summed entropy in nats."""
        return float(trace.entropy[find_pivots(trace.long_range_mass, threshold)].sum())
