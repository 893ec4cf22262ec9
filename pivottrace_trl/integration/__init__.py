"""The only room that touches TRL's private names."""

from .attachment import TrainerAttachment
from .checks import check_trainer, find_label_columns, find_verifier


__all__ = ["TrainerAttachment", "check_trainer", "find_label_columns", "find_verifier"]
