"""Rewards of the demo and of the arms that the reproduction compares."""

import numpy as np
from datasets import Dataset
from trl.rewards import accuracy_reward

from pivottrace_trl.demo.arithmetic import sample_problem, work_out
from pivottrace_trl.demo.rewards import DearestLabelReward, VoteReward, cached_accuracy_reward, right_vote_reward


def answers(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def boxed(*numbers):
    return answers(*(rf"\boxed{{{number}}}" for number in numbers))


def prompts(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_completions_are_verified_as_by_trl():
    texts = [r"\boxed{4}", "4", "", r"\boxed{5}", r"\boxed{\frac{8}{2}}", r"\boxed{4", r"\boxed{4}\boxed{5}", "\ud800"]
    completions = [[{"role": "assistant", "content": text}] for text in texts * 2]
    for solution in ("4", "$4$", "", "no number"):
        solutions = [solution] * len(completions)
        assert cached_accuracy_reward(completions, solutions) == accuracy_reward(completions, solutions)


def test_a_completion_is_verified_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "pivottrace_trl.demo.rewards.accuracy_reward", lambda texts, labels: calls.append(texts) or [1.0]
    )
    completions = [[{"role": "assistant", "content": f"seen {n % 2} times"}] for n in range(6)]
    assert cached_accuracy_reward(completions, ["1"] * 6) == [1.0] * 6 and len(calls) == 2


def test_worked_solutions_are_verified_as_by_trl(monkeypatch):
    rng = np.random.default_rng(0)
    problems = [sample_problem(rng, num_terms) for num_terms in (2, 3, 5, 8) for _ in range(8)]
    texts = [work_out(problem, rng, carelessness=0.5)[0] for problem in problems]
    # And what a policy in training writes.
    texts += [r"\boxed{014}", r"1+\boxed{}", r"2=2;\boxed{5};", r"\boxed{1}\boxed{5}", r"5;\boxed{5", r";;--\boxed{0}"]
    solutions = [work_out(problem)[1] for problem in problems] + ["14", "0", "5", "5", "5", "0"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    expected = accuracy_reward(completions, solutions)
    assert cached_accuracy_reward(completions, solutions) == expected and 0.2 < np.mean(expected) < 0.8
    # As a majority's answer is handed on.
    in_dollars = [f"${solution}$" for solution in solutions]
    assert cached_accuracy_reward(completions, in_dollars) == accuracy_reward(completions, in_dollars)


def test_votes_never_see_a_label():
    reward = VoteReward(num_generations=4)
    completions = answers("\\boxed{1}", "\\boxed{2}", "\\boxed{1}", "none")
    assert reward(completions) == [1.0, 0.0, 1.0, 0.0]
    assert reward(completions, ["$2$"] * 4)[:3] == [0.0, 1.0, 0.0]


def test_only_right_votes_are_paid():
    pool = Dataset.from_dict({"prompt": prompts("a", "b"), "solution": ["1", "$2$"]})
    reward = right_vote_reward(pool)
    completions = boxed(1, 3, 2, 3)
    # The votes: right for "a", wrong for "b". An evaluation problem is not in the pool.
    assert reward(prompts("a", "a", "b", "b"), completions, ["$1$", "$1$", "$3$", "$3$"]) == [1.0, 0.0, None, None]
    assert reward(prompts("a", "a", "b", "b"), completions, ["1", "1", "$2$", "$2$"]) == [1.0, 0.0, 1.0, 0.0]
    assert reward(prompts("c"), boxed(9), ["9"]) == [1.0]


def test_the_dearest_label_is_bought():
    reward = DearestLabelReward(num_generations=4, share=0.5)
    completions = boxed(1, 1, 1, 1) + boxed(2, 2, 2, 3) + boxed(4, 4, 5, 6) + boxed(7, 7, 7, 8)
    asked = prompts(*(text for text in "abcd" for _ in range(4)))
    truth = ["0"] * 4 + ["3"] * 4 + ["4"] * 4 + ["7"] * 4
    # A wrong but unanimous vote has no gradient with or without its label. Of the others "b" turns round, "c" votes
    # for nothing and gets a gradient, and "d" would not change.
    by_vote = [1.0] * 4 + [1.0, 1.0, 1.0, 0.0] + [None] * 4 + [1.0, 1.0, 1.0, 0.0]
    by_label = by_vote[:4] + [0.0, 0.0, 0.0, 1.0] + [1.0, 1.0, 0.0, 0.0] + by_vote[12:]
    assert reward(completions, prompts=asked, truth=truth) == by_label
    # One label for two prompts seen goes to the dearest of them, and is kept.
    reward = DearestLabelReward(num_generations=4, share=0.5)
    assert reward(completions[:8], prompts=asked[:8], truth=truth[:8]) == by_label[:8]
    assert reward(completions[4:8], prompts=asked[4:8], truth=truth[4:8]) == by_label[4:8]
    reward = DearestLabelReward(num_generations=4, share=0.3)
    assert reward(completions[4:], prompts=asked[4:], truth=truth[4:]) == by_vote[4:]
    assert reward(completions, completions and ["1"] * 16)[:5] == [1.0, 1.0, 1.0, 1.0, 0.0]
