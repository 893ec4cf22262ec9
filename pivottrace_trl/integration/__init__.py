"""The only room that touches TRL's private names."""

from .attachment import TrainerAttachment
from .checks import check_trainer, find_label_columns, find_verifier
from .parallelism import fingerprint_weights, whole_model


__all__ = [
    "TrainerAttachment",
    "check_trainer",
    "find_label_columns",
    "find_verifier",
    "fingerprint_weights",
    "whole_model",
]
