"""What a label is worth, against advantages that are computed, and how often votes are wrong, against drawn votes."""

from collections.abc import Iterator

import numpy as np
import pytest

from pivottrace_trl.routing.value import LabelValues, VoteErrors, label_value


def partitions(total: int, largest: int) -> Iterator[list[int]]:
    """All ways to split responses into clusters, largest first."""
    if total == 0:
        yield []
    for size in range(min(total, largest), 0, -1):
        for rest in partitions(total - size, size):
            yield [size, *rest]


GROUPS = [(sizes, n) for n in range(2, 9) for answered in range(1, n + 1) for sizes in partitions(answered, answered)]


def advantages(answers: list[int], label: int, scale: str, ddof: int = 0) -> np.ndarray:
    """Of a group whose responses are paid where their answer is the label."""
    rewards = np.array([float(answer == label) for answer in answers])
    centred = rewards - rewards.mean()
    if scale == "rloo":
        return centred * len(answers) / (len(answers) - 1)
    deviation = rewards.std(ddof=ddof) if scale == "group" else 1.0
    return centred / deviation if deviation > 0 else centred


def changes(sizes: list[int], n: int, scale: str, ddof: int = 0) -> np.ndarray:
    """Norm of the difference that the label makes if each answer is right; the last entry is for none of them."""
    # Responses without an answer agree with nothing.
    answers = np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1] * (n - sum(sizes))
    vote = advantages(answers, 0, scale, ddof)
    labels = [*range(len(sizes)), -2]
    return np.array([np.linalg.norm(vote - advantages(answers, label, scale, ddof)) for label in labels])


def expected(sizes: list[int], n: int, p_vote_wrong: float, scale: str = "group", ddof: int = 0) -> float:
    weights = np.array([*sizes[1:], 1 + n - sum(sizes)])
    return p_vote_wrong * float(changes(sizes, n, scale, ddof)[1:] @ weights / weights.sum())


@pytest.mark.parametrize("p_vote_wrong", [0.0, 0.3, 1.0])
def test_the_value_is_the_expected_change_of_grpos_advantages(p_vote_wrong):
    assert len(GROUPS) > 150
    for sizes, n in GROUPS:
        assert label_value(sizes, n, p_vote_wrong) == pytest.approx(expected(sizes, n, p_vote_wrong)), (sizes, n)


def test_with_the_standard_deviation_of_trl_all_values_are_a_factor_smaller():
    for sizes, n in GROUPS:
        factor = np.sqrt((n - 1) / n)
        assert expected(sizes, n, 1.0, ddof=1) == pytest.approx(factor * label_value(sizes, n, 1.0)), (sizes, n)


def test_without_division_by_the_groups_deviation_another_formula_holds():
    for sizes, n in GROUPS:
        found = changes(sizes, n, "none")
        for y, change in zip(sizes[1:], found[1:]):
            x = sizes[0]
            assert change == pytest.approx(np.sqrt((n * (x + y) - (x - y) ** 2) / n)), (sizes, n)
        assert changes(sizes, n, "rloo") == pytest.approx(found * n / (n - 1))
    # The order is another one, too: a minority of one response is worth nearly as much as one of three, or much less.
    some, few = changes([4, 3, 1], 8, "group"), changes([4, 3, 1], 8, "none")
    assert some[2] / some[1] > 0.85 and few[2] / few[1] < 0.85


def test_the_rule_of_care():
    n, x, y = 8, 5, 3
    right = np.sqrt(2 * n * (1 + np.sqrt(x * y / ((n - x) * (n - y)))))
    assert changes([x, y], n, "group") == pytest.approx([0.0, right, np.sqrt(n)])
    # All that answer agree; if they are wrong, nobody who is seen is right.
    assert label_value([5], n, 0.4) == pytest.approx(0.4 * np.sqrt(n))


@pytest.mark.parametrize("sizes", [[8], []])
def test_a_unanimous_group_is_worth_nothing_however_unsure_its_vote(sizes):
    assert label_value(sizes, 8, 1.0) == 0.0


def predict(errors: VoteErrors, agreement: float, p_failure: float = 0.5) -> float:
    return float(errors.predict(np.array([agreement]), np.array([p_failure]))[0])


def test_before_anything_is_verified_agreement_and_score_count_alike():
    for agreement in np.linspace(0, 1, 6):
        for p_failure in np.linspace(0, 1, 6):
            expected = (1 - agreement + p_failure) / 2
            assert predict(VoteErrors(), agreement, p_failure) == pytest.approx(expected, abs=0.17)


def test_prompts_with_and_without_a_group_lie_on_one_scale():
    values = LabelValues(6)
    values.update_ranking(np.arange(6), np.full(6, np.nan))
    # Nobody is known to be right anywhere: the place in the ranking has to do.
    assert values.p_failure == pytest.approx((np.arange(6) + 0.5) / 6)
    values.update_ranking(np.arange(6), np.linspace(1, 0, 6))
    before = values.of(np.arange(6), np.full(6, np.nan))
    assert (np.diff(before) > 0).all() and 0 < before[0] and before[5] < np.sqrt(2)
    # Of two minds, of one mind, nearly of one mind, or without any answer.
    values.update_groups([0, 1, 2, 3], [[4, 4], [8], [7, 1], []], 8)
    after = values.of(np.arange(4), np.array([0.5, 1.0, 0.875, 0.0]))
    assert after[0] > before[0] and after[2] < before[2] and after[1] == after[3] == 0.0
    p_wrong = predict(values.errors, 0.5, 0.0)
    assert after[0] == pytest.approx(label_value([4, 4], 8, p_wrong) / np.sqrt(8))


def test_five_lucky_votes_do_not_end_all_purchases():
    errors = VoteErrors()
    before = predict(errors, 0.6)
    for _ in range(5):
        errors.update(0.6, 0.5, is_wrong=False)
    assert 0.15 < predict(errors, 0.6) < before
    for _ in range(500):
        errors.update(0.9, 0.1, is_wrong=False)
    assert predict(errors, 1.0, 0.0) == 0.05


def test_many_verified_votes_outweigh_the_prior_and_the_score_counts_where_it_tells():
    rng = np.random.default_rng(0)
    errors = VoteErrors()

    def truth(agreement: float, p_failure: float) -> float:
        return 1 / (1 + np.exp(4 * agreement - 3 * p_failure - 0.5))

    for agreement, p_failure in rng.uniform(0, 1, (2000, 2)):
        errors.update(agreement, p_failure, rng.uniform() < truth(agreement, p_failure))
    for agreement, p_failure in [(0.3, 0.2), (0.3, 0.8), (0.9, 0.2), (0.9, 0.8)]:
        assert predict(errors, agreement, p_failure) == pytest.approx(truth(agreement, p_failure), abs=0.05)


def test_verified_votes_are_kept_and_the_oldest_forgotten():
    errors, again = VoteErrors(), VoteErrors()
    for number in range(2050):
        errors.update(number / 2050, 0.5, number % 3 == 0)
    again.load_state_dict(errors.state_dict())
    assert len(again.state_dict()) == 2048 and again.state_dict() == errors.state_dict()
    assert predict(again, 0.4) == predict(errors, 0.4)
