"""How little several answers to the same prompt agree."""

from dataclasses import dataclass
from typing import ClassVar

from ..tracing.trace import ResponseTrace
from .simple_score import SimpleScore


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
