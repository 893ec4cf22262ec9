from .calibration import Calibration
from .collapse import CollapseMonitor
from .router import PoolRouter
from .sampler import PivotRoutedSampler
from .triage import (
    Evidence,
    Route,
    TriageConfig,
    TriageResult,
    assign_routes,
    choose_probes,
    rank_pool,
    resolve_budget,
)
from .value import label_value

__all__ = [
    "Calibration",
    "CollapseMonitor",
    "Evidence",
    "PivotRoutedSampler",
    "PoolRouter",
    "Route",
    "TriageConfig",
    "TriageResult",
    "assign_routes",
    "choose_probes",
    "label_value",
    "rank_pool",
    "resolve_budget",
]
