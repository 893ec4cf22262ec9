from .scorer import PoolScorer, PoolScores

__all__ = [
    "PoolScorer",
    "PoolScores",
]
