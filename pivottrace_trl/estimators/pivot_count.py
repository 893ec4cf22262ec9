"""Number of pivots."""

from ..tracing.pivots import find_pivots
from ..tracing.trace import ResponseTrace
from .pivot_score import PivotScore


class PivotCount(PivotScore):
    """Number of pivots in a response: how often long-range attention jumps; long answers count more."""

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return the number of pivots."""
        return float(find_pivots(trace.long_range_mass, threshold).sum())
