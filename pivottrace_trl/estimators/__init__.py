"""Label-free uncertainty scores, one file each."""

from .base import Estimator
from .forking_tokens import ForkingTokens
from .mean_entropy import MeanEntropy
from .pivot_count import PivotCount
from .pivot_density import PivotDensity
from .pivot_entropy import PivotEntropy
from .random_score import RandomScore
from .registry import ESTIMATORS, get_estimator
from .response_length import ResponseLength


__all__ = [
    "ESTIMATORS",
    "Estimator",
    "ForkingTokens",
    "MeanEntropy",
    "PivotCount",
    "PivotDensity",
    "PivotEntropy",
    "RandomScore",
    "ResponseLength",
    "get_estimator",
]
