from .arithmetic import make_pool
from .run import MODEL_PATH

__all__ = [
    "MODEL_PATH",
    "make_pool",
]
