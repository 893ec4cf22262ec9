"""Number of tokens at which the model hesitates."""

from dataclasses import dataclass

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


@dataclass(frozen=True)
class ForkingTokens(SimpleScore):
    """
    Number of response tokens with high entropy, the "forking tokens" of arXiv 2506.01939. Needs no attention.

    Args:
        min_entropy (`float`, *optional*, defaults to `0.5`):
            Entropy in nats that a token must exceed.
    """

    min_entropy: float = 0.5

    def score(self, trace: ResponseTrace) -> float:
        """Return the number of forking tokens."""
        return float((trace.entropy > self.min_entropy).sum())
