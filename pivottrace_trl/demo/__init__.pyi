from .arithmetic import make_pool
from .arm import MODEL_PATH
from .trainer import QuickEvaluationTrainer, cached_accuracy_reward, generate_merged

__all__ = [
    "MODEL_PATH",
    "QuickEvaluationTrainer",
    "cached_accuracy_reward",
    "generate_merged",
    "make_pool",
]
