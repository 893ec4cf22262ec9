"""The arms of the demo as plain data, without slow imports."""

from dataclasses import dataclass, field
from pathlib import Path


MODEL_PATH = Path(__file__).parent / "model"
ANNOTATION_BUDGET = 0.293


@dataclass(frozen=True)
class Size:
    """Size of the demo: prompts, optimizer steps of each arm, steps between evaluations."""

    pool: int = 256
    held_out: int = 128
    eval_samples: int = 4
    max_steps: int = 60
    eval_every: int = 10


@dataclass
class Arm:
    """
    Results of one arm.

    Attributes:
        name (`str`): name of the arm.
        labels (`int`): number of labels used.
        steps (`list[int]`): optimizer steps at which it was evaluated, starting with 0.
        accuracies (`list[float]`): held-out accuracy at those steps, averaged over the samples of each problem, in
            `[0, 1]`.
        rollout_tokens (`list[int]`): tokens generated up to those steps, with scoring and without evaluation.
        seconds (`float`): wall-clock seconds, with evaluation.
    """

    name: str
    labels: int = 0
    steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    rollout_tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0


def first_step_at(arm: Arm, accuracy: float) -> int | None:
    """First evaluated step after the start at which an arm reached an accuracy; `None` if it never did."""
    points = zip(arm.steps, arm.accuracies, strict=True)
    return next((step for step, reached in points if step > 0 and reached >= accuracy), None)
