"""What reward functions are shown."""

import numpy as np
import pytest
from datasets import Value

from pivottrace_trl import AnnotationLedger, Query, TriageConfig, pool_ids
from pivottrace_trl.labels import LabelVault
from pivottrace_trl.routing import PoolRouter
from pivottrace_trl.training.batch_labels import LabelRouter
from pivottrace_trl.training.rewards import ROW_COLUMN, RoutedReward

from ..conftest import make_pool


GROUP = 4


@pytest.fixture
def label_router(tmp_path):
    pool = make_pool(10)
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 5, ids)
    vault = LabelVault(pool, ["solution", "answer"] if "answer" in pool.column_names else ["solution"], ids)
    ledger.request([Query(ids[0]), Query(ids[1])])
    ledger.buy(vault)  # the labels of rows 0 and 1 are "0" and "2"
    router = PoolRouter(ids, ledger, vault, TriageConfig(min_agreement=0.5))
    router.evidence.is_labelled[:] = [identity in ledger.bought_ids for identity in ids]
    return LabelRouter(router, "solution", [], vault, GROUP)


def test_locked_columns_come_with_a_bought_label_only(label_router):
    router, pool = label_router.router, make_pool(10).add_column("hint", [{"text": f"hint {i}"} for i in range(10)])
    label_router.locked_columns = ["hint"]
    label_router.vault = LabelVault(pool, ["solution"], router.prompt_ids, ["hint"])
    with pytest.raises(ValueError, match="was not bought, so its row stays locked"):
        label_router.vault.unlock(router.ledger, [router.prompt_ids[0], router.prompt_ids[5]])
    everyone, demanding = Recorder(), Recorder()
    answers = [0, 0, 7, None] + [5, 5, 5, 6] + [1, 2, 3, 4]
    rewards = call(RoutedReward(everyone, label_router, True), [0, 5, 6], answers)
    assert rewards == [1, 1, 0, 0] + [1, 1, 1, 0] + [None] * 4
    rewards = call(RoutedReward(demanding, label_router, False, needs_locked=True), [0, 5, 6], answers)
    assert rewards == [1, 1, 0, 0] + [None] * 8
    assert everyone.calls[0]["hint"] == [{"text": "hint 0"}] * 4 + [None] * 4
    assert demanding.calls[0]["hint"] == [{"text": "hint 0"}] * 4 and demanding.calls[0]["solution"] == ["0"] * 4


def test_evaluation_on_the_pool_shows_what_was_bought_and_holds_no_vote(label_router):
    label_router.is_training = lambda: False
    recorder, metrics = Recorder(), {}
    reward = RoutedReward(recorder, label_router, is_verifier=True)
    answers = [0, 7, 5, 5]  # of four prompts: evaluation need not come in groups
    before = label_router.monitor.state_dict()
    completions = [rf"\boxed{{{answer}}}" for answer in answers]
    arguments = {"prompts": ["?"] * 4, "completions": completions, "completion_ids": [[0]] * 4}
    assert reward(**arguments, log_metric=metrics.__setitem__, **{ROW_COLUMN: [0, 1, 5, 6]}) == [1, 0, None, None]
    assert recorder.calls[0]["solution"] == ["0", "2"] and label_router.num_withheld == 2
    evidence = label_router.router.evidence
    assert np.isnan(evidence.agreement).all() and np.isnan(evidence.pass_rate).all()
    assert metrics == {} and label_router.monitor.state_dict() == before


class Recorder:
    """A reward function that notes what it was shown and compares numbers."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, solution, **kwargs):
        self.calls.append({"completions": completions, "solution": solution, "ids": completion_ids, **kwargs})
        if "log_extra" in kwargs:
            kwargs["log_extra"]("gold", list(solution))
        return [float(f"{{{gold}}}" in text) for text, gold in zip(completions, solution, strict=True)]


def call(reward, rows, answers, **kwargs):
    completions = [rf"so \boxed{{{answer}}}" if answer is not None else "so" for answer in answers]
    return reward(
        prompts=["?"] * len(answers),
        completions=completions,
        completion_ids=[[index] for index in range(len(answers))],
        **({} if rows is None else {ROW_COLUMN: [row for row in rows for _ in range(GROUP)]}),
        **kwargs,
    )


def test_bought_label_pseudo_label_and_nothing(label_router):
    recorder, metrics, extra = Recorder(), {}, {}
    reward = RoutedReward(recorder, label_router, is_verifier=True)
    answers = [0, 0, 7, None] + [5, 5, 5, 6] + [1, 2, 3, 4]
    rewards = call(
        reward,
        [0, 5, 6],
        answers,
        level=list(range(12)),
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
        trainer_state="state",
    )
    assert rewards == [1, 1, 0, 0] + [1, 1, 1, 0] + [None] * 4
    (shown,) = recorder.calls
    assert shown["solution"] == ["0"] * 4 + ["5"] * 4
    assert shown["ids"] == [[index] for index in range(8)]
    assert shown["level"] == list(range(8)) and shown["trainer_state"] == "state"
    assert ROW_COLUMN not in shown
    assert extra["gold"] == ["0"] * 4 + ["5"] * 4 + [None] * 4
    assert label_router.num_withheld == 1
    assert metrics["pivottrace/vote_agreement"] == pytest.approx((0.5 + 0.75 + 0.25) / 3)
    assert metrics["pivottrace/withheld_ratio"] == pytest.approx(1 / 3)
    assert metrics["pivottrace/vote_accuracy"] == 1.0
    evidence = label_router.router.evidence
    assert evidence.pass_rate[0] == 0.5 and evidence.num_verified[0] == GROUP
    assert np.isnan(evidence.pass_rate[5]) and evidence.agreement[5] == 0.75


def test_vote_accuracy_tells_a_wrong_vote(label_router):
    metrics = {}
    reward = RoutedReward(Recorder(), label_router, is_verifier=True)
    call(reward, [0, 1], [9, 9, 9, 0] + [2, 2, 2, 2], log_metric=metrics.__setitem__)
    assert metrics["pivottrace/vote_accuracy"] == 0.5


def test_several_reward_functions_share_one_vote(label_router):
    first, second = Recorder(), Recorder()
    rewards = [RoutedReward(first, label_router, True), RoutedReward(second, label_router, False)]
    completions = [rf"\boxed{{{answer}}}" for answer in [5, 5, 5, 6]]
    for reward in rewards:
        arguments = {"prompts": ["?"] * 4, "completions": completions, "completion_ids": [[0]] * 4}
        assert reward(**arguments, **{ROW_COLUMN: [5] * 4}) == [1, 1, 1, 0]
    assert first.calls[0]["solution"] == second.calls[0]["solution"] == ["5"] * 4


def test_nothing_is_called_without_a_label_to_show(label_router):
    recorder = Recorder()
    assert call(RoutedReward(recorder, label_router, True), [6], [1, 2, 3, 4]) == [None] * 4
    assert recorder.calls == []


def test_evaluation_passes_through(label_router):
    recorder = Recorder()
    reward = RoutedReward(recorder, label_router, True)
    assert call(reward, None, [3, 4], solution=["3", "3"]) == [1, 0]
    assert np.isnan(label_router.router.evidence.agreement).all()


def test_pseudo_labels_have_the_type_of_the_label(label_router):
    label_router.label_feature = Value("int64")
    recorder = Recorder()
    call(RoutedReward(recorder, label_router, True), [5, 6], [5, 5, 5, 6] + ["1/2"] * 4)
    assert recorder.calls[0]["solution"] == [5] * 4  # a half is no integer: nothing is shown for row 6


def test_broken_groups_are_refused(label_router):
    reward = RoutedReward(Recorder(), label_router, True)
    with pytest.raises(RuntimeError, match="groups of 4 completions"):
        reward(["?"] * 4, ["1"] * 4, [[0]] * 4, **{ROW_COLUMN: [5, 5, 6, 6]})


def test_a_wrong_number_of_rewards_is_named(label_router):
    def reward(completions, **kwargs):
        return [1.0]

    with pytest.raises(ValueError, match="returned 1 rewards for 4 completions"):
        call(RoutedReward(reward, label_router, True), [0], [1, 2, 3, 4])


def test_a_paused_monitor_withholds_pseudo_labels_only(label_router):
    recorder, metrics = Recorder(), {}
    reward = RoutedReward(recorder, label_router, is_verifier=True)
    label_router.monitor.is_paused = True
    rewards = call(reward, [0, 5], [0, 0, 0, 7] + [5, 5, 5, 5], log_metric=metrics.__setitem__)
    assert rewards == [1, 1, 1, 0] + [None] * 4
    assert metrics["pivottrace/votes_paused"] == 1.0 and metrics["pivottrace/right_by_label"] == 0.75
    assert "pivottrace/right_by_vote" not in metrics


def test_the_monitor_sees_shares_of_groups(label_router, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(label_router.monitor), "update", lambda self, weak, verified: seen.append((weak, verified))
    )
    reward = RoutedReward(Recorder(), label_router, is_verifier=True)
    call(reward, [0, 5, 6], [0, 0, 7, None] + [5, 5, 5, 6] + [1, 2, 3, 4])
    assert seen == [([0.75], [0.5])]


def test_typed_labels_have_the_type_of_the_label(label_router):
    """What people typed is a text in the ledger, also where the column holds integers."""
    label_router.label_feature = Value("int64")
    recorder = Recorder()
    call(RoutedReward(recorder, label_router, True), [0], [1, 2, 3, 4])
    assert [type(label) for label in recorder.calls[0]["solution"]] == [int] * 4
