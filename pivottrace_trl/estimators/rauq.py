"""A score that propagates token probabilities along attention to the previous token."""

from dataclasses import dataclass

import numpy as np

from ..tracing.trace import ResponseTrace
from .base import Score


@dataclass(frozen=True)
class RAUQ(Score):
    """
    Recurrent attention-based uncertainty (RAUQ, arXiv 2505.20045). In each layer `l` of the middle third, the head
    that attends most to the previous token propagates confidence from token to token,

        c_l(0) = p(0),  c_l(t) = alpha * p(t) + (1 - alpha) * a_l(t) * c_l(t - 1),

    with `p(t)` the probability of response token `t` and `a_l(t)` the attention paid to token `t - 1` while token `t`
    is produced. The score is `max_l -mean_t log c_l(t)`, in nats.

    Args:
        alpha (`float`, *optional*, defaults to `0.2`):
            Weight of the token's own probability, in `(0, 1]`; the paper's value.
    """

    name = "rauq"
    needs = frozenset({"newest"})

    alpha: float = 0.2

    def score(self, trace: ResponseTrace) -> float:
        """Return the score in nats, at least 0."""
        attention = trace.read("newest").astype(float)
        probability = np.exp(trace.log_prob.astype(float))
        confidence = np.empty_like(attention)
        confidence[:, 0] = probability[0]
        for token in range(1, len(trace)):
            passed_on = attention[:, token] * confidence[:, token - 1]
            confidence[:, token] = self.alpha * probability[token] + (1 - self.alpha) * passed_on
        # A probability of 0 can only come from rounding.
        return float((-np.log(confidence.clip(min=1e-12))).mean(axis=1).max())
