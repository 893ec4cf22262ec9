"""The control: scores that know nothing."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..traces import ResponseTrace


@dataclass(frozen=True)
class RandomScore:
    """
    A number in `[0, 1)` drawn for each response. Any other score must beat it under the same budget.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw. The same response gets the same number, whatever it is scored together with.
    """

    seed: int = 0

    def fit(self, traces: Sequence[ResponseTrace]) -> "RandomScore":
        """Return itself: there is nothing to learn."""
        return self

    def __call__(self, traces: Sequence[ResponseTrace]) -> np.ndarray:
        """Return one number a trace, shape `(num_traces,)`; NaN for an empty response."""
        return np.array(
            [np.random.default_rng([self.seed, _digest(t)]).random() if len(t) else np.nan for t in traces]
        )


def _digest(trace: ResponseTrace) -> int:
    return zlib.crc32(trace.entropy.tobytes() + trace.long_range_mass.tobytes())
