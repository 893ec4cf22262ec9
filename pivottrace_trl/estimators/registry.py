"""Scores by name."""

from .base import Estimator
from .forking_tokens import ForkingTokens
from .mean_entropy import MeanEntropy
from .pivot_count import PivotCount
from .pivot_density import PivotDensity
from .pivot_entropy import PivotEntropy
from .random_score import RandomScore
from .response_length import ResponseLength


ESTIMATORS: dict[str, type] = {
    "entropy": MeanEntropy,
    "forking_tokens": ForkingTokens,
    "length": ResponseLength,
    "pivot_count": PivotCount,
    "pivot_density": PivotDensity,
    "pivot_entropy": PivotEntropy,
    "random": RandomScore,
}


def get_estimator(estimator: Estimator | str | None = None) -> Estimator:
    """
    Look a score up.

    Args:
        estimator ([`Estimator`] or `str`, *optional*):
            A name in [`ESTIMATORS`], or an estimator, which is returned as it is. Defaults to [`PivotEntropy`].

    Returns:
        [`Estimator`]

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything else that has no `fit(traces)` and `__call__(traces)`.
    """
    if estimator is None:
        return PivotEntropy()
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise ValueError(f"`estimator` is {estimator!r}, but must be one of {', '.join(ESTIMATORS)} or an object.")
        return ESTIMATORS[estimator]()
    if isinstance(estimator, type) or not isinstance(estimator, Estimator):
        raise TypeError(
            f"`estimator` is {estimator!r}, but must be a name or have `fit(traces)` and `__call__(traces)`; see "
            "`Estimator`."
        )
    return estimator
