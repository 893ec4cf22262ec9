"""The control: scores that know nothing."""

import zlib
from dataclasses import dataclass

import numpy as np

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


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
