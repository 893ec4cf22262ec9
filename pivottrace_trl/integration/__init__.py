"""The only room that touches TRL's private names."""

from .attachment import TrainerAttachment
from .checks import check_trainer
from .columns import PoolColumns, find_columns, find_verifier
from .gate import SpendingGate, say
from .parallelism import fingerprint_weights, whole_model
from .prompts import check_evaluation_data, check_form_of_prompts, check_prompts


__all__ = [
    "PoolColumns",
    "SpendingGate",
    "TrainerAttachment",
    "check_evaluation_data",
    "check_form_of_prompts",
    "check_prompts",
    "check_trainer",
    "find_columns",
    "find_verifier",
    "fingerprint_weights",
    "say",
    "whole_model",
]
