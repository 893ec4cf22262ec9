from .base import AnswerFormat, Reading
from .format import MathFormat
from .metric import MathAccuracy
from .plain import ChoiceFormat, NumberFormat, TextFormat
from .reader import AnswerReader
from .vote import Vote, is_correct, majority_vote

__all__ = [
    "AnswerFormat",
    "AnswerReader",
    "ChoiceFormat",
    "MathAccuracy",
    "MathFormat",
    "NumberFormat",
    "Reading",
    "TextFormat",
    "Vote",
    "is_correct",
    "majority_vote",
]
