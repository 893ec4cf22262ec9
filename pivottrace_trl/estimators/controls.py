"""What every other score must beat: length, chance, and several responses instead of one."""

import zlib
from dataclasses import dataclass

import numpy as np

from ..tracing.trace import ResponseTrace
from .base import Score


@dataclass(frozen=True)
class ResponseLength(Score):
    """Number of response tokens: long answers tend to be unsure ones."""

    name = "length"

    def score(self, trace: ResponseTrace) -> float:
        """Return the length in tokens."""
        return float(len(trace))


@dataclass(frozen=True)
class RandomScore(Score):
    """
    A number in `[0, 1)` drawn for each response. Any other score must beat it under the same budget.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw. The same response gets the same number, whatever it is scored together with.
    """

    name = "random"

    seed: int = 0

    def score(self, trace: ResponseTrace) -> float:
        """Return a number that depends on the seed and the response only."""
        digest = zlib.crc32(trace.entropy.tobytes() + trace.long_range_mass.tobytes())
        return float(np.random.default_rng([self.seed, digest]).random())


@dataclass(frozen=True)
class Consistency(Score):
    """
    One minus the share of sampled responses that give the majority answer (self-consistency, arXiv 2203.11171). The
    only score that needs several responses a prompt: a group of them for the first routing; from then on the groups
    that training samples anyway.
    """

    name = "consistency"
    needs = frozenset({"agreement"})

    def score(self, trace: ResponseTrace) -> float:
        """Return one minus the agreement, in `[0, 1]`."""
        return 1.0 - float(trace.read("agreement"))
