from .record import RunRecorder, find_runs

__all__ = [
    "RunRecorder",
    "find_runs",
]
