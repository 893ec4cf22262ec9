from .base import CalibratedEstimator, Estimator
from .coe import CoE
from .consistency import Consistency
from .forking_tokens import ForkingTokens
from .mean_entropy import MeanEntropy
from .pivot_count import PivotCount
from .pivot_density import PivotDensity
from .pivot_entropy import PivotEntropy
from .probe_calibrated import ProbeCalibrated
from .random_score import RandomScore
from .rauq import RAUQ
from .registry import ESTIMATORS, get_estimator
from .response_length import ResponseLength
from .self_certainty import SelfCertainty
from .total_entropy import TotalEntropy

__all__ = [
    "CalibratedEstimator",
    "CoE",
    "Consistency",
    "ESTIMATORS",
    "Estimator",
    "ForkingTokens",
    "MeanEntropy",
    "PivotCount",
    "PivotDensity",
    "PivotEntropy",
    "ProbeCalibrated",
    "RAUQ",
    "RandomScore",
    "ResponseLength",
    "SelfCertainty",
    "TotalEntropy",
    "get_estimator",
]
