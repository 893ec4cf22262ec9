"""What the label of a prompt is worth, once a group of answers to it was seen. Pure numbers: knows no trainer."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression


# What counts before anything is verified: votes of all agreements at prompts of all kinds, which weigh as much as
# eight that were verified.
_PRIOR = np.stack(np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9)), axis=-1).reshape(-1, 2)
_PRIOR_WEIGHT = 8.0
# Votes that are always right for a while must not end all purchases: some labels go where none seems to be needed.
_LEAST = 0.05
# Norm of the difference of two orthogonal vectors of norm 1.
_UNRELATED = sqrt(2.0)
# The policy that cast older votes is another one by now.
_NUM_VERIFIED = 2048


def label_value(cluster_sizes: Sequence[int], group_size: int, p_vote_wrong: float) -> float:
    """
    Expected change of a group's gradient by its label, in units of one response's advantage.

    Without a label the group is trained on its majority answer, with it on the label. GRPO's advantages are the
    rewards less their mean, divided by their standard deviation. With `n` responses of which `x` are paid these are
    `sqrt((n - x) / x)` for the paid ones and `-sqrt(x / (n - x))` for the others, a vector of the norm `sqrt(n)`. The
    vectors of the majority `x` and of another answer `y` have the inner product `-n sqrt(xy / ((n - x)(n - y)))`,
    since no response gives both; hence the norm of their difference (CARE, arXiv 2605.25864):

    - `sqrt(2n (1 + sqrt(xy / ((n - x)(n - y)))))` if the label is the answer that `y` responses give,
    - `sqrt(n)` if no response gives it, as all advantages are 0 then,
    - 0 if the vote is right, or the group is unanimous: with all rewards alike there is no gradient either way.

    Which of them holds is not known before the label is bought. That the vote is wrong has probability
    `p_vote_wrong`. The other answers are then right in proportion to the responses that give them, and none of them
    with the weight of one response more, and of every response that holds no answer (our choice: it is the urn that
    says what the next response would answer).

    The formula is exact for the standard deviation of the group, `scale_rewards="group"` (TRL divides by `n - 1`,
    which multiplies every value by `sqrt((n - 1) / n)` and changes no order), and rewards of 0 and 1. It does not hold
    for advantages that are not divided by it (`"none"`, RLOO), where the change is
    `sqrt((n (x + y) - (x - y)**2) / n)`, or that are divided by that of a batch (`"batch"`).

    Args:
        cluster_sizes (`Sequence[int]`):
            How many responses give each distinct answer, the majority first; empty if none holds an answer.
        group_size (`int`):
            Number of responses, those without an answer included.
        p_vote_wrong (`float`):
            Probability that the majority answer is wrong.

    Returns:
        `float`: between 0 and `2 * sqrt(group_size)`.
    """
    majority, others = cluster_sizes[:1], cluster_sizes[1:]
    if not majority or majority[0] == group_size:
        return 0.0
    x, n = majority[0], group_size
    changes = [sqrt(2 * n * (1 + sqrt(x * y / ((n - x) * (n - y))))) for y in others]
    weight_of_none = 1 + n - sum(cluster_sizes)
    total = sum(y * change for y, change in zip(others, changes, strict=True)) + weight_of_none * sqrt(n)
    return p_vote_wrong * total / (sum(others) + weight_of_none)


class LabelValues:
    """
    What the label of every prompt of a pool is worth now: how probably the policy's vote is wrong, times what the
    label changes then. Values are [`label_value`] per root of the group's size, so that prompts with and without a
    group lie on one scale, from 0 to 2. Where no group was seen, the vote is taken to agree by half, so that the score
    alone tells how probably it is wrong, and the label to change the gradient into one that has nothing to do with it.

    Attributes:
        changes (`np.ndarray` of shape `(num_prompts,)`): what the label changes if the vote of the latest group is
            wrong; NaN without a group.
        p_failure (`np.ndarray` of shape `(num_prompts,)`): how probably the policy is wrong, going by the score at the
            latest routing; NaN before the first.
        errors ([`VoteErrors`]): how often votes are wrong.
    """

    def __init__(self, num_prompts: int):
        self.changes = np.full(num_prompts, np.nan)
        self.p_failure = np.full(num_prompts, np.nan)
        self.errors = VoteErrors()

    def update_groups(self, rows: Sequence[int], sizes: Sequence[Sequence[int]], group_size: int) -> None:
        """Take up the clusters of each row's latest group, see [`label_value`]."""
        self.changes[list(rows)] = [label_value(some, group_size, 1.0) / sqrt(group_size) for some in sizes]

    def update_ranking(self, ranking: np.ndarray, success: np.ndarray) -> None:
        """
        Take up how often the policy is right along a ranking from least to most uncertain, both of shape
        `(num_prompts,)`. Where nothing is known of that (NaN), the place in the ranking has to do.
        """
        place = (np.arange(len(ranking)) + 0.5) / len(ranking)
        self.p_failure[ranking] = np.where(np.isfinite(success), 1 - success, place)

    def of(self, rows: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        """Values of the labels of rows whose latest groups agreed so much; NaN before the first routing."""
        values, p_failure = np.full(len(rows), np.nan), self.p_failure[rows]
        is_ranked, has_group = np.isfinite(p_failure), np.isfinite(self.changes[rows])
        change = np.where(has_group, self.changes[rows], _UNRELATED)
        p_wrong = self.errors.predict(np.where(has_group, agreement, 0.5)[is_ranked], p_failure[is_ranked])
        values[is_ranked] = change[is_ranked] * p_wrong
        return values

    def state_dict(self) -> dict[str, Any]:
        """Arrays with one entry a prompt, and the verified votes."""
        return {"label_change": self.changes, "p_failure": self.p_failure, "verified_votes": self.errors.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.changes, self.p_failure = np.array(state["label_change"], float), np.array(state["p_failure"], float)
        self.errors.load_state_dict(state["verified_votes"])


class VoteErrors:
    """
    How often votes are wrong, by those that were verified: a logistic regression on the agreement of the vote and on
    how probably the policy is wrong at the prompt, by its score. As long as few are verified, votes are wrong as often
    as these two say on average: the disagreement, and the score. It never says less than 0.05. Of each label only the
    vote of the first group counts: afterwards the policy was trained on it, and votes for it more often than for
    labels that nobody bought.
    """

    def __init__(self) -> None:
        # Agreement, probability that the policy is wrong, and whether the vote was wrong.
        self._verified: list[tuple[float, float, bool]] = []

    def update(self, agreement: float, p_failure: float, is_wrong: bool) -> None:
        """Take up a vote that was verified."""
        self._verified = [*self._verified[1 - _NUM_VERIFIED :], (float(agreement), float(p_failure), bool(is_wrong))]

    def predict(self, agreement: np.ndarray, p_failure: np.ndarray) -> np.ndarray:
        """Probability that a vote is wrong, for arrays of one shape `(num_groups,)`."""
        if len(agreement) == 0:
            return np.zeros(0)
        p_wrong = (1 - _PRIOR[:, 0] + _PRIOR[:, 1]) / 2
        weights = np.append(p_wrong, 1 - p_wrong) * _PRIOR_WEIGHT / len(_PRIOR)
        seen = np.array(self._verified, float).reshape(-1, 3)
        model = LogisticRegression().fit(
            _features(np.concatenate([_PRIOR, _PRIOR, seen[:, :2]])),
            np.concatenate([np.repeat([True, False], len(_PRIOR)), seen[:, 2] > 0]),
            sample_weight=np.append(weights, np.ones(len(seen))),
        )
        found = _features(np.stack([agreement, p_failure], axis=1))
        return model.predict_proba(found)[:, 1].clip(_LEAST)

    def state_dict(self) -> list[list[Any]]:
        """The verified votes, as plain values."""
        return [list(vote) for vote in self._verified]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        """Go on from what `state_dict` returned."""
        self._verified = [(agreement, p_failure, is_wrong) for agreement, p_failure, is_wrong in state]


def _features(votes: np.ndarray) -> np.ndarray:
    # Probabilities vary by about a quarter: in units of that, so that the ridge of the fit does not hold them down.
    return (votes - 0.5) / 0.25
