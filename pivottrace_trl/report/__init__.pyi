from .record import RunRecorder

__all__ = [
    "RunRecorder",
]
