"""Label-free uncertainty scores: one number per response, computed from its trace."""

from .base import CalibratedEstimator, Estimator, Score
from .coe import CoE
from .controls import Consistency, RandomScore, ResponseLength
from .entropy import ForkingTokens, MeanEntropy, SelfCertainty, TotalEntropy
from .pivot import PivotCount, PivotDensity, PivotEntropy
from .probe_calibrated import ProbeCalibrated
from .rauq import RAUQ


ESTIMATORS: dict[str, type[Score]] = {
    score.name: score
    for score in (
        CoE,
        Consistency,
        MeanEntropy,
        ForkingTokens,
        ResponseLength,
        PivotCount,
        PivotDensity,
        PivotEntropy,
        ProbeCalibrated,
        RandomScore,
        RAUQ,
        SelfCertainty,
        TotalEntropy,
    )
}
"""The scores of this package, by name."""

__all__ = [
    "ESTIMATORS",
    "CalibratedEstimator",
    "Estimator",
    "get_estimator",
    *(score.__name__ for score in ESTIMATORS.values()),
]


def get_estimator(estimator: Estimator | str | None = None) -> Estimator:
    """
    Find a score by its name.

    Args:
        estimator ([`Estimator`] or `str`, *optional*):
            A name in [`ESTIMATORS`], or an estimator, which is returned unchanged. Defaults to [`TotalEntropy`].

    Returns:
        [`Estimator`]

    Raises:
        ValueError: if the name is unknown.
        TypeError: if an object is not a dataclass, or lacks `needs`, `fit(traces)` or `__call__(traces)`.
    """
    if estimator is None:
        return TotalEntropy()
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise ValueError(f"`estimator` is {estimator!r}, but must be one of {', '.join(ESTIMATORS)} or an object.")
        return ESTIMATORS[estimator]()
    if isinstance(estimator, type) or not isinstance(estimator, Estimator):
        raise TypeError(
            f"`estimator` is {estimator!r}, but must be a name or have `needs`, `fit(traces)` and `__call__(traces)`, "
            "and be a dataclass; see `Estimator`."
        )
    return estimator
