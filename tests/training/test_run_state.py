"""The state of a run beside a checkpoint: what is damaged, what is another run's, and what is a mistake of ours."""

import json

import numpy as np
import pytest

from pivottrace_trl import AnnotationLedger, TriageConfig
from pivottrace_trl.labels.waiting import People
from pivottrace_trl.routing.collapse import CollapseMonitor
from pivottrace_trl.routing.router import PoolRouter
from pivottrace_trl.scoring.scorer import PoolScorer
from pivottrace_trl.training.run_state import Position, RunState

from ..routing.examiners import FirstResponses


IDS = [f"p{row:02d}" for row in range(20)]
POSITION = Position(seed=0, epoch=0, num_prompts=16, num_scoring_tokens=40, survey="look")


@pytest.fixture
def make_state(tmp_path):
    def make() -> RunState:
        ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 10, IDS)
        router = PoolRouter(IDS, ledger, People(ledger), TriageConfig(4))
        return RunState(router, PoolScorer(None, 0), {"monitor": CollapseMonitor()})

    return make


@pytest.fixture
def saved(make_state, tmp_path):
    state = make_state()
    state.router.update_scores(np.arange(20), np.arange(20.0), np.linspace(0, 1, 20))
    state.router.first_routing(FirstResponses(lambda row: row < 10))
    state.router.update_votes([1, 2], [0.5, 1.0], ["a secret of the policy", None])
    state.router.update_traced([3], np.array([7.0]), np.array([0.2]))
    state.others["monitor"].update([0.5], [1.0, 0.0])
    state.scorer.heads, state.scorer.probes = {4: [0, 3], 11: [1]}, [2, 7]
    state.save(tmp_path, POSITION)
    return state


def test_every_owner_gets_its_state_back(saved, make_state, tmp_path):
    state = make_state()
    assert state.load(tmp_path, seed=0) == POSITION
    for owner, original in ((state.router, saved.router), (state.scorer, saved.scorer)):
        np.testing.assert_equal(owner.state_dict(), original.state_dict())
    assert state.others["monitor"].state_dict() == saved.others["monitor"].state_dict()
    assert state.scorer.heads == {4: [0, 3], 11: [1]}
    # What texts there are stays in the private folder: checkpoints go to the hub.
    assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.glob("pivottrace.*"))


@pytest.mark.parametrize("name", ["pivottrace.json", "pivottrace.parquet"])
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data.replace(b"1", b"2"), lambda data: b""])
def test_a_damaged_file_is_called_damaged_and_changes_nothing(name, damage, saved, make_state, tmp_path):
    path, state = tmp_path / name, make_state()
    path.write_bytes(damage(path.read_bytes()))
    before = state.router.state_dict()
    with pytest.raises(ValueError, match="cannot be read .*It is damaged: resume from another checkpoint"):
        state.load(tmp_path, seed=0)
    np.testing.assert_equal(state.router.state_dict(), before)


@pytest.mark.parametrize("error", [AttributeError, KeyError, TypeError, ValueError, LookupError])
@pytest.mark.parametrize("owner", [PoolRouter, PoolScorer, CollapseMonitor])
def test_a_mistake_of_ours_does_not_blame_the_file(owner, error, saved, make_state, tmp_path, monkeypatch):
    def mistaken(self, state):
        raise error("a typo")

    monkeypatch.setattr(owner, "load_state_dict", mistaken)
    with pytest.raises(error, match="^'?a typo'?$"):
        make_state().load(tmp_path, seed=0)


def test_the_state_of_an_earlier_release_is_named(saved, make_state, tmp_path):
    content = json.loads((tmp_path / "pivottrace.json").read_text())
    (tmp_path / "pivottrace.json").write_text(json.dumps(content | {"format": 3}))
    with pytest.raises(ValueError, match="routing state of format 3, but this release reads 5"):
        make_state().load(tmp_path, seed=0)


def test_another_score_is_refused(saved, make_state, tmp_path):
    state = make_state()
    with pytest.raises(ValueError, match="scored by TotalEntropy, but `estimator` is RAUQ. Resume with the same one"):
        RunState(state.router, PoolScorer("rauq", 0), state.others).load(tmp_path, seed=0)


def test_a_view_of_a_ledger_buys_nothing(saved):
    saved.router.ledger = type("View", (), {"budget": 10})()
    with pytest.raises(RuntimeError, match="A view of a ledger cannot buy labels"):
        saved.router.route(1, FirstResponses(lambda row: True))
