from .arithmetic import make_pool
from .arm import MODEL_PATH
from .generation import generate_quickly
from .rewards import DearestLabelReward, VoteReward, cached_accuracy_reward, right_vote_reward
from .trainer import QuickTrainer

__all__ = [
    "DearestLabelReward",
    "MODEL_PATH",
    "QuickTrainer",
    "VoteReward",
    "cached_accuracy_reward",
    "generate_quickly",
    "make_pool",
    "right_vote_reward",
]
