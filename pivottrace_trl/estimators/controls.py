"""What every other score must beat: length, chance, and several responses instead of one."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..tracing.trace import ResponseTrace
from .base import SimpleScore


@dataclass(frozen=True)
class ResponseLength(SimpleScore):
    """Number of response tokens: long answers tend to be unsure ones."""

    def score(self, trace: ResponseTrace) -> float:
        """Return the length in tokens."""
        return float(len(trace))


@dataclass(frozen=True)
class RandomScore(SimpleScore):
    """
    A number in `[0, 1)` drawn for each response. Any other score must beat it under the same budget.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw. The same response gets the same number, whatever it is scored together with.
    """

    seed: int = 0

    def score(self, trace: ResponseTrace) -> float:
        """Return a number that depends on the seed and the response only."""
        digest = zlib.crc32(trace.entropy.tobytes() + trace.long_range_mass.tobytes())
        return float(np.random.default_rng([self.seed, digest]).random())


@dataclass(frozen=True)
class Consistency(SimpleScore):
    """
    One minus the share of sampled responses that give the majority answer (self-consistency, arXiv 2203.11171). The
    only score that needs several responses a prompt: a group of them for the first routing; from then on the groups
    that training samples anyway.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"agreement"})

    def score(self, trace: ResponseTrace) -> float:
        """Return one minus the agreement, in `[0, 1]`."""
        return 1.0 - float(trace.read("agreement"))
