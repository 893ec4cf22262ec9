"""How far the model's distributions are from uniform."""

from dataclasses import dataclass
from typing import ClassVar

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


@dataclass(frozen=True)
class SelfCertainty(SimpleScore):
    """
    Self-certainty (arXiv 2502.18581, equation 8) with its sign turned, since higher is to mean less sure: minus the
    mean over the response tokens of the divergence in nats of the uniform distribution from the model's,
    `-mean_v log p_v - log V`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"self_certainty"})

    def score(self, trace: ResponseTrace) -> float:
        """Return minus the mean self-certainty in nats, at most 0."""
        return -float(trace.read("self_certainty").mean())
