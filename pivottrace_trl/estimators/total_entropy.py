"""Entropy of a whole response."""

from dataclasses import dataclass

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


@dataclass(frozen=True)
class TotalEntropy(SimpleScore):
    """
    Sum over the response tokens of the entropy in nats. Its expectation over responses is the entropy of the
    distribution over responses (chain rule), so that one response gives an unbiased estimate of how many different
    things the model might have said.
    """

    def score(self, trace: ResponseTrace) -> float:
        """Return the summed entropy in nats."""
        return float(trace.entropy.sum(dtype=float))
