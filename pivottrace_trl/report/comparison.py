"""Arms over their seeds: means, intervals, paired differences, steps to a goal. Pure numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from .record import Run


CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with its 95% confidence interval (Student's t); the limits are NaN for one seed."""

    mean: float
    low: float
    high: float
    num_seeds: int


def mean_over_seeds(values: Sequence[float] | np.ndarray) -> SeedMean:
    """Mean of one value a seed, with its 95% interval."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return SeedMean(float(array.mean()), float("nan"), float("nan"), len(array))
    half = student.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return SeedMean(float(array.mean()), float(array.mean() - half), float(array.mean() + half), len(array))


def first_step_at(steps: np.ndarray, accuracy: np.ndarray, goal: float) -> int | None:
    """First evaluated step, not counting step 0, at which a curve reaches a goal; `None` if it never does."""
    reached = (accuracy >= goal) & (steps > 0)
    return int(steps[np.argmax(reached)]) if reached.any() else None


@dataclass(frozen=True)
class ArmSummary:
    """What one arm reached on one set. A difference is paired over the seeds that both arms have."""

    arm: str
    seeds: tuple[int, ...]
    labels: SeedMean
    tokens: SeedMean  # of prompts and rollouts, scoring included
    steps: np.ndarray  # shape (num_evaluations,): evaluated steps that all seeds have
    curves: np.ndarray  # shape (num_seeds, num_evaluations): accuracies
    final: SeedMean  # accuracy at the last of these steps
    area: SeedMean  # mean accuracy after the start: how early an arm learns, with less noise than a single step
    against_reference: SeedMean | None  # difference of `final`
    against_random: SeedMean | None
    area_against_reference: SeedMean | None
    goal_step: int | None  # the first step at which the mean curve reaches the reference's mean final accuracy
    speed_up: float | None  # the reference's own first such step, divided by `goal_step`
    goal_steps: tuple[int | None, ...]  # the first such step of each seed that both arms have


def summarise(runs: Sequence[Run], name: str, reference: str, random: str = "Random") -> list[ArmSummary]:
    """
    Summarise the arms on one evaluated set, the reference first, then in the order of the runs. The reference and the
    control arm may be absent.
    """
    arms: dict[str, dict[int, Run]] = {}
    for run in runs:
        if name in run.evaluations:
            arms.setdefault(run.arm, {})[run.seed] = run
    names = sorted(arms, key=lambda arm: arm != reference)
    curves = {arm: _common_curves(arms[arm], name) for arm in names}
    goal = own_step = None
    if reference in curves:
        mean = np.mean([*curves[reference].of_seed.values()], 0)
        goal = float(mean[-1])
        own_step = first_step_at(curves[reference].steps, mean, goal)
    summaries = []
    for arm in names:
        steps, of_seed = curves[arm].steps, curves[arm].of_seed
        values = np.array([*of_seed.values()])
        goal_step = None if goal is None else first_step_at(steps, values.mean(0), goal)
        goals = {seed: curve[-1] for seed, curve in curves[reference].of_seed.items()} if reference in curves else {}
        goal_steps = [first_step_at(steps, curve, goals[seed]) for seed, curve in of_seed.items() if seed in goals]
        summaries.append(
            ArmSummary(
                arm=arm,
                seeds=tuple(of_seed),
                labels=mean_over_seeds([arms[arm][seed].num_labels for seed in of_seed]),
                tokens=mean_over_seeds([arms[arm][seed].evaluations[name].tokens[-1] for seed in of_seed]),
                steps=steps,
                curves=values,
                final=mean_over_seeds(values[:, -1]),
                area=mean_over_seeds(values[:, 1:].mean(1) if values.shape[1] > 1 else values[:, 0]),
                against_reference=_difference(curves, arm, reference, lambda curve: curve[-1]),
                against_random=_difference(curves, arm, random, lambda curve: curve[-1]),
                area_against_reference=_difference(curves, arm, reference, lambda curve: curve[1:].mean()),
                goal_step=goal_step,
                speed_up=None if goal_step is None or own_step is None else own_step / goal_step,
                goal_steps=tuple(goal_steps),
            )
        )
    return summaries


@dataclass(frozen=True)
class _Curves:
    """Accuracies of one arm, seeds in order, at the steps at which all of them were evaluated."""

    steps: np.ndarray
    of_seed: dict[int, np.ndarray]


def _common_curves(runs: dict[int, Run], name: str) -> _Curves:
    evaluations = {seed: runs[seed].evaluations[name] for seed in sorted(runs)}
    common = sorted(set.intersection(*(set(evaluation.steps.tolist()) for evaluation in evaluations.values())))
    of_seed = {}
    for seed, evaluation in evaluations.items():
        at = dict(zip(evaluation.steps.tolist(), evaluation.accuracy.tolist(), strict=True))
        of_seed[seed] = np.array([at[step] for step in common], float)
    return _Curves(np.array(common), of_seed)


def _difference(
    curves: dict[str, _Curves], arm: str, other: str, measure: Callable[[np.ndarray], float]
) -> SeedMean | None:
    """How far an arm is above another, paired over the seeds that both have."""
    if arm == other or other not in curves:
        return None
    mine, theirs = curves[arm].of_seed, curves[other].of_seed
    differences = [measure(mine[seed]) - measure(theirs[seed]) for seed in mine if seed in theirs]
    return mean_over_seeds(differences) if differences else None
