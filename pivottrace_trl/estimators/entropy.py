"""Scores from next-token distributions: entropies and self-certainty."""

from dataclasses import dataclass

from ..tracing.trace import ResponseTrace
from .base import Score


@dataclass(frozen=True)
class MeanEntropy(Score):
    """Mean entropy over the response tokens, in nats: the usual baseline of uncertainty."""

    name = "entropy"

    def score(self, trace: ResponseTrace) -> float:
        """Return the mean entropy in nats."""
        return float(trace.entropy.mean())


@dataclass(frozen=True)
class TotalEntropy(Score):
    """
    Sum of the entropy over the response tokens, in nats. By the chain rule, its expectation over responses is the
    entropy of the distribution over whole responses. One response therefore gives an unbiased estimate of how varied
    the model's responses are.
    """

    name = "total_entropy"

    def score(self, trace: ResponseTrace) -> float:
        """Return the summed entropy in nats."""
        return float(trace.entropy.sum(dtype=float))


@dataclass(frozen=True)
class ForkingTokens(Score):
    """
    Number of response tokens with high entropy, the "forking tokens" of arXiv 2506.01939. It does not use attention.

    Args:
        min_entropy (`float`, *optional*, defaults to `0.5`):
            Entropy in nats that a token must exceed.
    """

    name = "forking_tokens"

    min_entropy: float = 0.5

    def score(self, trace: ResponseTrace) -> float:
        """Return the number of forking tokens."""
        return float((trace.entropy > self.min_entropy).sum())


@dataclass(frozen=True)
class SelfCertainty(Score):
    """
    Self-certainty (arXiv 2502.18581, equation 8), negated so that higher means less sure: minus the mean over the
    response tokens of `-mean_v log p_v - log V`, the divergence of the uniform distribution from the model's, in nats.
    """

    name = "self_certainty"
    needs = frozenset({"self_certainty"})

    def score(self, trace: ResponseTrace) -> float:
        """Return the negative mean self-certainty in nats, at most 0."""
        return -float(trace.read("self_certainty").mean())
