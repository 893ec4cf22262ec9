"""Label-free uncertainty scores, one file each."""

from .base import Estimator
from .pivot_density import PivotDensity
from .pivot_entropy import PivotEntropy
from .response_length import ResponseLength


__all__ = ["Estimator", "PivotDensity", "PivotEntropy", "ResponseLength"]
