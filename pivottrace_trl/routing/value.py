"""The value of a prompt's label, given a group of answers to the prompt. Only numbers: knows no trainer."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression


# Prior data before anything is verified: votes with all agreements, for prompts of all difficulties. Together they
# weigh as much as eight verified votes.
_PRIOR = np.stack(np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9)), axis=-1).reshape(-1, 2)
_PRIOR_WEIGHT = 8.0
# Lower limit of the error probability, so that a streak of right votes does not end all purchases.
_LEAST = 0.05
# Norm of the difference of two orthogonal vectors of norm 1.
_UNRELATED = sqrt(2.0)
# Number of verified votes that are kept. Older votes are from a policy that has changed since.
_NUM_VERIFIED = 2048


def label_value(cluster_sizes: Sequence[int], group_size: int, p_vote_wrong: float) -> float:
    """
    Expected change of a group's gradient by its label, in units of one response's advantage.

    Without its label, a group is trained on its majority answer; with it, on the label. GRPO's advantages are the
    rewards minus their mean, divided by their standard deviation. If `x` of `n` responses are rewarded, the advantages
    are `sqrt((n - x) / x)` for these and `-sqrt(x / (n - x))` for the others, a vector with norm `sqrt(n)`. The
    vectors for the majority answer (`x` responses) and another answer (`y` responses) have the inner product `-n
    sqrt(xy / ((n - x)(n - y)))`, since no response gives both. The norm of their difference follows (CARE, arXiv
    2605.25864):

    - `sqrt(2n (1 + sqrt(xy / ((n - x)(n - y)))))` if the label is the answer of `y` responses,
    - `sqrt(n)` if no response gives the label, as all advantages are 0 then,
    - 0 if the vote is right, or the group is unanimous: with equal rewards there is no gradient either way.

    Which case holds is not known before the label is bought. The vote is wrong with probability `p_vote_wrong`. In
    that case, each other answer is right with a weight equal to its number of responses, and an answer that nobody
    gave with a weight of one, plus one for every response without an answer. These weights are our choice: they are
    the urn model for the next response.

    The formula is exact for rewards of 0 and 1 and the standard deviation of the group, `scale_rewards="group"`. (TRL
    divides by `n - 1`, which multiplies every value by `sqrt((n - 1) / n)` and does not change their order.) It does
    not hold for advantages without that division (`"none"`, RLOO), where the change is
    `sqrt((n (x + y) - (x - y)**2) / n)`, or with the standard deviation of the batch (`"batch"`).

    Args:
        cluster_sizes (`Sequence[int]`):
            Number of responses for each distinct answer, the majority first; empty if no response has an answer.
        group_size (`int`):
            Number of responses, including those without an answer.
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
    The current value of every label of a pool: the probability that the policy's vote is wrong, times the change of
    the gradient by the label in that case. Values are [`label_value`] divided by the square root of the group size, so
    that prompts with and without a group are on one scale, from 0 to 2. For a prompt without a group, an agreement of
    one half is assumed, so that only the score determines the error probability; and the gradient with the label is
    assumed to be orthogonal to the one without.

    Attributes:
        changes (`np.ndarray` of shape `(num_prompts,)`, float): change of the gradient by the label if the vote of the
            latest group is wrong; NaN without a group.
        p_failure (`np.ndarray` of shape `(num_prompts,)`, float): probability that the policy is wrong, from the score
            at the latest routing; NaN before the first.
        errors ([`VoteErrors`]): model of how often votes are wrong.
    """

    def __init__(self, num_prompts: int):
        self.changes = np.full(num_prompts, np.nan)
        self.p_failure = np.full(num_prompts, np.nan)
        self.errors = VoteErrors()

    def update_groups(self, rows: Sequence[int], sizes: Sequence[Sequence[int]], group_size: int) -> None:
        """Set the cluster sizes of each row's latest group, see [`label_value`]."""
        self.changes[list(rows)] = [label_value(some, group_size, 1.0) / sqrt(group_size) for some in sizes]

    def update_ranking(self, ranking: np.ndarray, success: np.ndarray) -> None:
        """
        Set how often the policy is right along a ranking from least to most uncertain, both of shape
        `(num_prompts,)`. Where this is not known (NaN), the position in the ranking is used instead.
        """
        place = (np.arange(len(ranking)) + 0.5) / len(ranking)
        self.p_failure[ranking] = np.where(np.isfinite(success), 1 - success, place)

    def of(self, rows: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        """Values of the labels of some rows, given the agreement of their latest groups; NaN before the first routing.
        All arrays have shape `(num_rows,)`."""
        values, p_failure = np.full(len(rows), np.nan), self.p_failure[rows]
        is_ranked, has_group = np.isfinite(p_failure), np.isfinite(self.changes[rows])
        change = np.where(has_group, self.changes[rows], _UNRELATED)
        p_wrong = self.errors.predict(np.where(has_group, agreement, 0.5)[is_ranked], p_failure[is_ranked])
        values[is_ranked] = change[is_ranked] * p_wrong
        return values

    def state_dict(self) -> dict[str, Any]:
        """Arrays with one entry per prompt, and the verified votes."""
        return {"label_change": self.changes, "p_failure": self.p_failure, "verified_votes": self.errors.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.changes, self.p_failure = np.array(state["label_change"], float), np.array(state["p_failure"], float)
        self.errors.load_state_dict(state["verified_votes"])


class VoteErrors:
    """
    Predicts how often votes are wrong, from verified votes. It is a logistic regression on the agreement of the vote
    and on the probability of failure by the prompt's score. As long as few votes are verified, the prediction is close
    to the mean of the disagreement and the probability of failure. It is never below 0.05. For each label, only the
    vote of the first group counts: later the policy has been trained on the label, and votes for it more often than
    for labels that were not bought.
    """

    def __init__(self) -> None:
        # Agreement, probability of failure, and whether the vote was wrong.
        self._verified: list[tuple[float, float, bool]] = []

    def update(self, agreement: float, p_failure: float, is_wrong: bool) -> None:
        """Add a verified vote."""
        self._verified = [*self._verified[1 - _NUM_VERIFIED :], (float(agreement), float(p_failure), bool(is_wrong))]

    def predict(self, agreement: np.ndarray, p_failure: np.ndarray) -> np.ndarray:
        """Probability that each vote is wrong; all arrays have shape `(num_groups,)`."""
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
        """The verified votes as plain values."""
        return [list(vote) for vote in self._verified]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._verified = [(agreement, p_failure, is_wrong) for agreement, p_failure, is_wrong in state]


def _features(votes: np.ndarray) -> np.ndarray:
    # Probabilities have a standard deviation of about a quarter. In units of that, the ridge penalty does not
    # dominate.
    return (votes - 0.5) / 0.25
