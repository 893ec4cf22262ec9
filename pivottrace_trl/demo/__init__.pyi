from .arithmetic import make_pool
from .arm import MODEL_PATH
from .generation import generate_quickly
from .trainer import QuickTrainer, cached_accuracy_reward

__all__ = [
    "MODEL_PATH",
    "QuickTrainer",
    "cached_accuracy_reward",
    "generate_quickly",
    "make_pool",
]
