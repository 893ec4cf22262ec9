"""Reward functions of the arms that the reproduction compares, with fast verification."""

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import numpy as np
from datasets import Dataset
from trl.rewards import accuracy_reward

from ..answers import majority_vote
from ..routing.triage import TriageConfig


# A worked solution in the form of the demo's model. Two integers are compared without an algebra system.
_WORKED = re.compile(r"[0-9+=;-]*\\boxed\{(\d+)\}")


@lru_cache(maxsize=2**16)
def _accuracy(text: str, solution: str) -> float | None:
    worked = _WORKED.fullmatch(text)
    number = solution.strip("$")
    if worked is not None and number.isdecimal():
        return float(int(worked[1]) == int(number))
    return accuracy_reward([[{"role": "assistant", "content": text}]], [solution])[0]


@wraps(accuracy_reward)
def cached_accuracy_reward(completions, solution, **kwargs):
    """
    TRL's `accuracy_reward` with a cache of verified completions, and without parsing integers as algebra.

    Args:
        completions (`list[list[dict[str, str]]]`): completions with one message each.
        solution (`list[str]`): label of each completion.

    Returns:
        `list[float or None]`: 1.0 if right, 0.0 if wrong, `None` if the label cannot be read.
    """
    return [
        _accuracy(completion[0]["content"], label) for completion, label in zip(completions, solution, strict=True)
    ]


class VoteReward:
    """
    Rewards agreement with the majority answer of each group, without labels, and evaluates with TRL's
    `accuracy_reward`. The evaluation set has its labels in a column `solution`; the training data has no such column.

    Args:
        num_generations (`int`): size of a group in training.
    """

    def __init__(self, num_generations: int):
        self._size = num_generations
        # TRL logs the reward under this name.
        self.__name__ = "accuracy_reward"

    def __call__(self, completions, solution=None, **kwargs):
        """Reward of each completion, see [`VoteReward`]. The completions of a group are consecutive."""
        if solution is not None:
            return cached_accuracy_reward(completions, solution)
        starts = range(0, len(completions), self._size)
        groups = [[completion[-1]["content"] for completion in completions[n : n + self._size]] for n in starts]
        return [reward for group in groups for reward in self._by_vote(group)]

    def _by_vote(self, group: list[str]) -> list[float | None]:
        members = majority_vote(group).members
        return [float(place in members) for place in range(self._size)]


class DearestLabelReward(VoteReward):
    """
    An upper bound that reads all labels. After the rollout, a share of the groups seen so far gets its label, namely
    the groups whose advantages the label changes most. The other groups are rewarded by their votes if these reach the
    default agreement of a [`TriageConfig`], and otherwise not at all.

    The labels of the training data are in a column `truth`, those of the evaluation set in `solution`.

    Args:
        num_generations (`int`): size of a group in training.
        share (`float`): number of labels per prompt seen.
    """

    def __init__(self, num_generations: int, share: float):
        super().__init__(num_generations)
        self._share = share
        self._seen: set[str] = set()
        self._bought: set[str] = set()

    def __call__(self, completions, solution=None, prompts=None, truth=None, **kwargs):
        """Reward of each completion, see [`DearestLabelReward`]. The completions of a group are consecutive."""
        by_vote = super().__call__(completions, solution)
        if truth is None:
            return by_vote
        by_label = cached_accuracy_reward(completions, truth)
        groups = [(prompts[n][-1]["content"], slice(n, n + self._size)) for n in range(0, len(prompts), self._size)]
        change = {text: _distance(by_label[place], by_vote[place]) for text, place in groups}
        self._seen |= change.keys()
        for text in sorted(change.keys() - self._bought, key=lambda text: (-change[text], text)):
            if change[text] > 0 and len(self._bought) < int(self._share * len(self._seen)):
                self._bought.add(text)
        return [reward for text, place in groups for reward in (by_label if text in self._bought else by_vote)[place]]

    def _by_vote(self, group: list[str]) -> list[float | None]:
        is_trusted = majority_vote(group).agreement >= TriageConfig().min_agreement
        return super()._by_vote(group) if is_trusted else [None] * self._size


def _distance(first: list[float | None], second: list[float | None]) -> float:
    """Distance between the advantages of a group under two rewards."""
    return float(np.linalg.norm(_advantages(first) - _advantages(second)))


def _advantages(rewards: list[float | None]) -> np.ndarray:
    """Advantages of a group as TRL scales them; 0 for a group without a reward."""
    values = np.array([0.0 if reward is None else reward for reward in rewards])
    return (values - values.mean()) / (values.std(ddof=1) + 1e-4)


def right_vote_reward(pool: Dataset) -> Callable[..., Any]:
    """
    An upper bound that reads all labels: TRL's `accuracy_reward`, but without a reward if the given label is not that
    of the pool, that is, if a vote is wrong.

    Args:
        pool ([`~datasets.Dataset`]): prompts and solutions, before a callback takes the solutions out.

    Returns:
        `Callable`: the reward function.
    """
    texts, labels = [prompt[-1]["content"] for prompt in pool["prompt"]], pool["solution"]
    truth = dict(zip(texts, labels, strict=True))

    def right_votes(prompts, completions, solution, **kwargs):
        known = [truth.get(prompt[-1]["content"], label) for prompt, label in zip(prompts, solution, strict=True)]
        said = [[{"role": "assistant", "content": f"\\boxed{{{label.strip('$')}}}"}] for label in known]
        rewards = cached_accuracy_reward(completions, solution)
        is_right = cached_accuracy_reward(said, solution)
        return [reward if right == 1.0 else None for reward, right in zip(rewards, is_right, strict=True)]

    return right_votes
