"""Control scores that every other score must beat: length, chance, and several responses instead of one."""

import zlib
from dataclasses import dataclass

import numpy as np

from ..tracing.trace import ResponseTrace
from .base import Score


@dataclass(frozen=True)
class ResponseLength(Score):
    """Number of response tokens, as long answers tend to be less sure."""

    name = "length"

    def score(self, trace: ResponseTrace) -> float:
        """Return the length in tokens."""
        return float(len(trace))


@dataclass(frozen=True)
class RandomScore(Score):
    """
    A random number in `[0, 1)` for each response. Any other score must beat it under the same budget.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Random seed. A response always gets the same number, whatever else is scored.
    """

    name = "random"

    seed: int = 0

    def score(self, trace: ResponseTrace) -> float:
        """Return a number in `[0, 1)` that depends only on the seed and the response."""
        digest = zlib.crc32(trace.entropy.tobytes() + trace.long_range_mass.tobytes())
        return float(np.random.default_rng([self.seed, digest]).random())


@dataclass(frozen=True)
class Consistency(Score):
    """
    One minus the share of sampled responses that give the majority answer (self-consistency, arXiv 2203.11171). This
    is the only score that needs several responses per prompt: a group for the first routing, and later the groups that
    training samples anyway.
    """

    name = "consistency"
    needs = frozenset({"agreement"})

    def score(self, trace: ResponseTrace) -> float:
        """Return one minus the agreement, in `[0, 1]`."""
        return 1.0 - float(trace.read("agreement"))
