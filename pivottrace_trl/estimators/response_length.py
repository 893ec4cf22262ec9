"""The baseline that every score must beat."""

from dataclasses import dataclass

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


@dataclass(frozen=True)
class ResponseLength(SimpleScore):
    """Number of response tokens: long answers tend to be unsure ones."""

    def score(self, trace: ResponseTrace) -> float:
        """Return the length in tokens."""
        return float(len(trace))
