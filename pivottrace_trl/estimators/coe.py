"""A score from the path of the hidden states through the layers."""

from dataclasses import dataclass

import numpy as np

from ..tracing.trace import ResponseTrace
from .base import Score


@dataclass(frozen=True)
class CoE(Score):
    """
    Chain-of-embedding score CoE-R (arXiv 2410.13640), negated so that higher means less sure. With `h_l` the hidden
    state after layer `l`, averaged over the response, `h_0` the embeddings and `L` layers,

        CoE-R = mean_l |h_(l+1) - h_l| / |h_L - h_0|  -  mean_l angle(h_(l+1), h_l) / angle(h_L, h_0),

    a number without a unit.
    """

    name = "coe"
    needs = frozenset({"layer_gram"})

    def score(self, trace: ResponseTrace) -> float:
        """Return the negative of CoE-R."""
        lengths, angles, length, angle = steps(trace.read("layer_gram"))
        return float((angles / angle).mean() - (lengths / length).mean())


def steps(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """
    Geometry of the path through the layers.

    Args:
        gram (`np.ndarray` of shape `(num_layers + 1, num_layers + 1)`): inner products of the hidden states.

    Returns:
        `tuple[np.ndarray, np.ndarray, float, float]`: lengths and angles (radians) of the steps, each of shape
        `(num_layers,)`, and the length and angle from the first to the last state.
    """
    squares = np.diagonal(gram)
    before, after = np.arange(len(gram) - 1), np.arange(1, len(gram))

    def length(a, b):
        return np.sqrt((squares[a] + squares[b] - 2 * gram[a, b]).clip(min=0))

    def angle(a, b):
        return np.arccos((gram[a, b] / np.sqrt(squares[a] * squares[b])).clip(-1, 1))

    return length(before, after), angle(before, after), float(length(0, -1)), float(angle(0, -1))
