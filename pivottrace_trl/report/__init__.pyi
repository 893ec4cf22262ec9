from .record import RunRecorder, find_runs
from .routed import routed_dataset

__all__ = [
    "RunRecorder",
    "find_runs",
    "routed_dataset",
]
