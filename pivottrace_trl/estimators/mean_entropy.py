"""Mean entropy of the response tokens."""

from dataclasses import dataclass

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


@dataclass(frozen=True)
class MeanEntropy(SimpleScore):
    """Mean over the response tokens of the entropy in nats: the usual baseline of uncertainty."""

    def score(self, trace: ResponseTrace) -> float:
        """Return the mean entropy in nats."""
        return float(trace.entropy.mean())
