"""Pivots per response token."""

from ..tracing.pivots import pivot_density
from ..tracing.trace import ResponseTrace
from .pivot_score import PivotScore


class PivotDensity(PivotScore):
    """Pivots per response token: how often long-range attention jumps while the model answers."""

    def score(self, trace: ResponseTrace, threshold: float) -> float:
        """Return pivots per token, in `[0, 1]`."""
        return pivot_density(trace.long_range_mass, threshold)
