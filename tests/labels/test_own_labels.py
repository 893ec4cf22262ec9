"""A partly filled label column: what is filled is the user's own and free, the rest is what the budget is spent on."""

import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from pivottrace_trl import AnnotationLedger, Answer, Query, Route, TriageConfig
from pivottrace_trl.labels import LabelVault, Outcome
from pivottrace_trl.labels.waiting import People
from pivottrace_trl.routing import PoolRouter
from pivottrace_trl.routing.triage import resolve_budget

from ..conftest import attach, digit_reward, make_pool
from ..routing.examiners import FirstResponses


IDS = [f"p{number:02d}" for number in range(12)]
NOTHING = [None, "", " ", "\n\t"]
COLUMNS = {
    "string": (Value("string"), st.sampled_from([*NOTHING, "7", "-1", "x", "$\\frac{1}{2}$"])),
    "int": (Value("int64"), st.sampled_from([None, 0, 7, -(2**60)])),
    "float": (Value("float64"), st.sampled_from([None, float("nan"), 0.0, 0.1, 1e300])),
    "list": (List(Value("string")), st.sampled_from([None, [], [""], [" ", ""], ["7"], ["", "8"], ["1", "2"]])),
    "class": (ClassLabel(names=["A", "B", "C"]), st.sampled_from([None, 0, 1, 2])),
    "bool": (Value("bool"), st.sampled_from([None, True, False])),
}


def is_empty(label) -> bool:
    """As the documentation has it."""
    if isinstance(label, list):
        return all(is_empty(part) for part in label)
    return label is None or label != label or (isinstance(label, str) and not label.strip())


def make_vault(labels, feature=None, ids=IDS) -> LabelVault:
    features = Features({"solution": feature or Value("string")})
    return LabelVault(Dataset.from_dict({"solution": labels}, features), ["solution"], ids)


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, IDS)
    yield ledger
    ledger.close()


def kinds(ledger, after=0):
    return [e["kind"] for e in ledger.events() if e["event_id"] > after and e["kind"] not in ("settings", "request")]


@pytest.mark.parametrize("kind", COLUMNS)
@settings(max_examples=15)
@given(data=st.data())
def test_whatever_is_filled_is_own(kind, data, tmp_path_factory):
    feature, values = COLUMNS[kind]
    labels = data.draw(st.lists(values, min_size=12, max_size=12))
    filled = {identity for identity, label in zip(IDS, labels, strict=True) if not is_empty(label)}
    vault = make_vault(labels, feature)
    ledger = AnnotationLedger(tmp_path_factory.mktemp("own") / "ledger.sqlite", 12, IDS)
    assert vault.num_labels == len(filled)
    for _ in range(2):
        assert ledger.take_own(vault) == []
        assert ledger.own_ids == filled and (ledger.num_bought, ledger.spent) == (0, 0.0)
        assert {event["author"] for event in ledger.events() if event["kind"] == "own"} <= {"dataset"}
    assert kinds(ledger) == ["own"] * len(filled)  # the second time nothing is new
    for identity, label in zip(IDS, labels, strict=True):
        assert ledger.label(identity) == ({"solution": label} if identity in filled else None)
    ledger.request([Query(identity) for identity in IDS])
    assert {query.prompt_id for query in ledger.queue()} == set(IDS) - filled
    ledger.close()


def test_labels_that_are_filled_in_later(ledger, caplog):
    labels = ["0", None, "", "3", *[None] * 8]
    ledger.take_own(make_vault(labels))
    ledger.request([Query(identity) for identity in IDS])
    answers = {"p01": "1", "p02": "2", "p04": "4"}
    ledger.record([Answer(identity, {"solution": label}, "ann", 1.0) for identity, label in answers.items()])
    assert (ledger.num_bought, ledger.num_left, ledger.spent) == (3, 0, 3.0)
    # Filled by the user later: as it was bought, otherwise, and never bought, though the budget is spent.
    last, labels[1], labels[2], labels[5] = ledger.last_event, "1", "two", "5"
    assert ledger.take_own(make_vault(labels)) == ["p02"] and "(p02)" in caplog.text
    assert kinds(ledger, last) == ["undo", "own", "own"]
    assert ledger.own_ids == {"p00", "p02", "p03", "p05"} and ledger.author("p01") == "ann"
    assert ledger.label("p02") == {"solution": "two"} and ledger.label("p05") == {"solution": "5"}
    assert (ledger.num_bought, ledger.num_left, ledger.spent) == (3, 0, 3.0)  # no double cost, no refund
    # Emptied again: nothing is taken away.
    assert ledger.take_own(make_vault([None] * 12)) == [] and ledger.label("p05") == {"solution": "5"}


def test_own_labels_that_were_corrected(ledger, caplog):
    labels = [str(number) for number in range(6)] + [None] * 6
    ledger.take_own(make_vault(labels))
    last, labels[2] = ledger.last_event, "right"
    shuffled = random.Random(0).sample(range(12), 12)
    vault = make_vault([labels[n] for n in shuffled], ids=[IDS[n] for n in shuffled])
    assert ledger.take_own(vault) == ["p02"] and ledger.label("p02") == {"solution": "right"}
    assert kinds(ledger, last) == ["undo", "own"] and ledger.num_bought == 0 and "for 1 prompts" in caplog.text
    # Also where the column itself sells labels now.
    labels[3] = "right as well"
    assert ledger.take_corrections(make_vault(labels)) == ["p03"]
    assert ledger.own_ids == set(IDS[:6]) and ledger.num_bought == 0


def test_who_contradicted_the_dataset_keeps_the_last_word(ledger):
    labels = ["0", "1/2", *[None] * 10]
    ledger.take_own(make_vault(labels))
    better = [Answer("p00", {"solution": "9"}, "ann")]
    assert ledger.record(better) == [Outcome.CONFLICT]
    assert ledger.record(better, replace=True) == [Outcome.RECORDED] and ledger.num_bought == 1
    for _ in range(2):  # the dataset says nothing new
        assert ledger.take_own(make_vault(labels)) == [] and ledger.label("p00") == {"solution": "9"}
    labels[0] = "10"
    assert ledger.take_own(make_vault(labels)) == ["p00"] and ledger.label("p00") == {"solution": "10"}
    # What means the same is no other label.
    labels[2] = "0.5"
    ledger.record([Answer("p02", {"solution": r"$\frac{1}{2}$"}, "ann")])
    assert ledger.take_own(make_vault(labels)) == [] and ledger.author("p02") == "ann"


def test_labels_that_the_column_sold_before(tmp_path):
    """A run without an annotator bought some; the next one asks people, and owns the others."""
    labels = [str(number) for number in range(8)] + [None] * 4
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, IDS)
    ledger.request([Query(identity) for identity in IDS])
    assert ledger.buy(make_vault(labels)) == 3
    ledger.close()
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, IDS)
    assert ledger.take_own(make_vault(labels)) == []
    assert ledger.own_ids == set(IDS[3:8]) and ledger.bought_ids == set(IDS[:3]) and ledger.num_bought == 3


@pytest.mark.parametrize(
    ("budget", "num_own", "labels"),
    [(0.5, 60, 20), (0.5, 100, 0), (0.293, 99, 0), (7, 60, 7), (7, 100, 7), (1.0, 1, 99)],
)
def test_a_share_is_one_of_the_rows_without_a_label(budget, num_own, labels):
    assert resolve_budget(budget, 100, num_own) == labels


class Everyone:
    batch_size = 16

    def __init__(self):
        self.asked = []

    def ask(self, queries):
        self.asked += [query.prompt_id for query in queries]
        return [Answer(query.prompt_id, {"solution": "1"}, "everyone", 1.0) for query in queries]


def make_router(folder, own, budget=20, oracle=None, num_prompts=100, **config):
    """A router of a pool in the order of its scores, whose rows `own` have a label."""
    ids = [f"p{row:03d}" for row in range(num_prompts)]
    ledger = AnnotationLedger(folder / "ledger.sqlite", budget, ids)
    ledger.take_own(make_vault(["1" if row in own else None for row in range(num_prompts)], ids=ids))
    router = PoolRouter(ids, ledger, oracle or People(ledger), TriageConfig(**config))
    router.update_scores(np.arange(num_prompts), np.arange(float(num_prompts)), np.full(num_prompts, 0.1))
    return router


def below(threshold):
    return FirstResponses(lambda row: row < threshold)


def test_own_labels_calibrate_and_are_not_asked_for(tmp_path):
    own = set(range(0, 100, 2))
    oracle = Everyone()
    router = make_router(tmp_path, own, oracle=oracle)
    result = router.first_routing(below(60))
    # One probe stands in each stretch of the ranking; those whose label one has are not bought.
    assert (router.probes // 10).tolist() == list(range(10)) and set(router.probes.tolist()) <= own
    bought = {int(identity[1:]) for identity in oracle.asked}
    assert not own & bought and router.ledger.num_bought == router.ledger.spent == len(bought) <= 20
    # Every own label is verified evidence, and is trained on unless it is mastered.
    assert (router.evidence.num_verified[sorted(own)] == 1).all()
    assert (result.routes[60:100:2] == Route.ANNOTATE).all()
    assert (result.routes[:50:2] == Route.DISCARD).all()


def test_stretches_of_the_ranking_without_an_own_label_are_probed(tmp_path):
    """Labels of the easy half do not stand for the hard one."""
    oracle = Everyone()
    router = make_router(tmp_path, set(range(50)), oracle=oracle)
    router.first_routing(below(60), buy=False)
    assert sorted(oracle.asked) == [f"p{row:03d}" for row in range(55, 100, 10)] and router.ledger.num_bought == 5
    assert (router.probes // 10).tolist() == list(range(10))


def test_probes_whose_label_one_has_are_free(tmp_path):
    oracle = Everyone()
    router = make_router(tmp_path, set(range(5, 100, 10)), budget=20, oracle=oracle)
    router.first_routing(below(60), buy=False)
    assert oracle.asked == [] and router.ledger.num_bought == 0
    assert np.isfinite(router.evidence.pass_rate[router.probes]).all()


def test_people_are_asked_by_what_own_labels_show(tmp_path):
    """Without any label the queue is blind; with own ones it is not."""
    router = make_router(tmp_path, set(range(0, 100, 4)), budget=30)
    result = router.first_routing(below(60))
    assert result.calibration is not None and np.isfinite(result.calibration.separation)
    assert (result.routes == Route.DISCARD).any() and (result.routes == Route.ANNOTATE).any()
    queue = {query.prompt_id for query in router.ledger.queue()}
    assert queue and not any(int(identity[1:]) % 4 == 0 for identity in queue)


@pytest.mark.parametrize("num_own", [0, 100])
def test_all_or_none_are_filled(num_own, tmp_path):
    oracle = Everyone()
    router = make_router(tmp_path, set(range(num_own)), budget=0 if num_own else 20, oracle=oracle)
    result = router.first_routing(below(60))
    assert len(oracle.asked) == (0 if num_own else 20)
    assert result.counts()["weak"] == 0 or not num_own
    router.route(1, below(60))
    assert router.ledger.num_bought == len(oracle.asked)


def test_a_run_that_goes_back(tmp_path):
    """
    A checkpoint's decisions stay; what came from outside since is known from the next routing on, and what the run
    asked for later is not before it asks again.
    """
    router = make_router(tmp_path, set(range(20)), budget=60, oracle=Everyone(), probe_size=10, tau_low=1.0)
    router.first_routing(below(60))
    labelled, state = router.evidence.is_labelled.copy(), router.state_dict()
    saved = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.items()}
    router.route(1, below(60))
    router.update_votes(range(50, 60), [0.1] * 10)
    router.route(2, below(60))
    later = np.flatnonzero(router.evidence.is_labelled & ~labelled)
    own, unasked = [20, 21, 70, 71, 72], [30, 31]
    say = [Answer(router.prompt_ids[row], {"solution": "1"}, "me") for row in own]
    assert router.ledger.record(say, is_own=True) == [Outcome.RECORDED] * 5
    bought = [Answer(router.prompt_ids[row], {"solution": "1"}, "ann") for row in unasked]
    assert len(later) and router.ledger.record(bought) == [Outcome.RECORDED] * 2
    num_bought = router.ledger.num_bought

    again = PoolRouter(router.prompt_ids, router.ledger, Everyone(), router.config)
    again.load_state_dict(saved)
    # The epoch that is under way goes on as it began.
    assert (again.evidence.is_labelled == labelled).all() and (again.routes == saved["route"]).all()
    assert not any(again.label(row) for row in [*own, *unasked, *later])
    again.route(1, below(60))
    assert again.evidence.is_labelled[[*own, *unasked]].all() and not again.evidence.is_labelled[later].any()
    again.update_votes(range(50, 60), [0.1] * 10)
    again.route(2, below(60))
    assert again.evidence.is_labelled[later].all() and router.ledger.num_bought == num_bought


def partly_filled(num_filled=12, num_prompts=32) -> Dataset:
    labels = [label if row < num_filled else NOTHING[row % 4] for row, label in enumerate(make_pool()["solution"])]
    return make_pool().remove_columns("solution").add_column("solution", labels).select(range(num_prompts))


def someone(rows):
    return ["7"] * len(rows)


@pytest.mark.parametrize("annotator", ["queue", someone, Everyone()], ids=["queue", "function", "oracle"])
def test_a_partly_filled_column_and_an_annotator(annotator, make_trainer, capsys):
    trainer = make_trainer(partly_filled(), num_train_epochs=2)
    callback = attach(trainer, 0.5, annotator=annotator)
    output = capsys.readouterr().out
    assert (
        "12 rows have a `solution` already, which is yours and costs nothing; the budget is for the other 20" in output
    )
    ids = callback.router.prompt_ids
    assert (
        callback.ledger.budget == 10 and callback.ledger.own_ids == set(ids[:12]) and callback.ledger.num_bought == 0
    )
    trainer.train()
    assert callback.ledger.own_ids == set(ids[:12])
    assert callback.router.evidence.is_labelled[:12].all() and (callback.router.routes[:12] != Route.WEAK).all()
    assert callback.ledger.num_bought <= 10
    asked = [event["prompt_id"] for event in callback.ledger.events() if event["kind"] == "request"]
    assert asked and set(asked) <= set(ids)
    if annotator == "queue":
        assert {query.prompt_id for query in callback.ledger.queue()} <= set(
            ids[12:]
        ) and callback.ledger.num_bought == 0
    else:
        assert {event["prompt_id"] for event in callback.ledger.events() if event["kind"] == "answer"} <= set(ids[12:])


@pytest.mark.parametrize("probe_size", [None, 8])
def test_a_filled_column_and_an_annotator(probe_size, make_trainer, capsys):
    trainer = make_trainer(max_steps=2)
    callback = attach(trainer, 0.3, annotator=someone, config=TriageConfig(probe_size=probe_size))
    assert (
        "32 rows have a `solution` already, which is yours and costs nothing; nothing is left"
        in capsys.readouterr().out
    )
    trainer.train()
    assert callback.ledger.num_bought == 0 and callback.summary()["routes"]["weak"] == 0


def test_without_an_annotator_the_column_sells(make_trainer, capsys):
    callback = attach(make_trainer(partly_filled()), 10)
    assert "20 rows have no `solution`: asked for, they count as declined" in capsys.readouterr().out
    assert callback.ledger.own_ids == set() and callback.ledger.num_bought == 0
    assert len(callback.ledger.events()) == 1  # the settings
    callback.detach()
    attach(make_trainer(), 10)
    assert "rows have" not in capsys.readouterr().out


def test_rows_that_are_filled_between_two_starts(make_trainer, caplog):
    trainer = make_trainer(partly_filled(), max_steps=1)
    callback = attach(trainer, 10, annotator=someone)
    trainer.train()
    ids, bought = callback.router.prompt_ids, callback.ledger.bought_ids
    num_bought, spent = callback.ledger.num_bought, callback.ledger.spent
    callback.detach()
    callback = attach(make_trainer(partly_filled(32), max_steps=1), 10, annotator=someone)
    assert callback.ledger.own_ids >= set(ids) - bought
    assert (callback.ledger.num_bought, callback.ledger.spent) == (num_bought, spent)
    assert callback.ledger.own_ids | callback.ledger.bought_ids == set(ids)


def test_own_labels_have_the_type_of_their_column(make_trainer):
    seen = []

    def reward(completions, solution, **kwargs):
        seen.extend(solution)
        return digit_reward(completions, [str(label) for label in solution])

    labels = [row % 10 if row < 16 else None for row in range(32)]
    pool = make_pool().remove_columns("solution").add_column("solution", labels)
    trainer = make_trainer(pool, reward, max_steps=3)
    callback = attach(trainer, 0.5, annotator=someone)
    trainer.train()
    assert callback.ledger.label(callback.router.prompt_ids[3]) == {"solution": 3}
    assert seen and {type(label) for label in seen} == {int}


def take_until_killed(path, ids, ready):
    ledger = AnnotationLedger(path, 3, ids)
    vault = make_vault(["7"] * len(ids), ids=ids)
    ready.set()
    ledger.take_own(vault)
    time.sleep(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
def test_killed_while_own_labels_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("pivottrace_trl.labels.column_labels._CHUNK_SIZE", 50)
    context, path, rng = multiprocessing.get_context("fork"), tmp_path / "ledger.sqlite", random.Random(0)
    ids, before = [f"p{number:04d}" for number in range(3000)], 0
    for _ in range(8):
        ready = context.Event()
        process = context.Process(target=take_until_killed, args=(path, ids, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        ledger = AnnotationLedger.open(path)
        assert len(ledger.own_ids) >= before and len(ledger.own_ids) % 50 == 0 and ledger.num_bought == 0
        before = len(ledger.own_ids)
        ledger.close()
    ledger = AnnotationLedger(path, 3, ids)
    ledger.take_own(make_vault(["7"] * len(ids), ids=ids))
    assert ledger.own_ids == set(ids) and kinds(ledger) == ["own"] * len(ids)


def import_at_the_same_time(path, ids):
    ledger = AnnotationLedger.open(path)
    for identity in ids:
        ledger.record([Answer(identity, {"solution": "8"}, "ann", 1.0)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pivottrace_trl.labels.column_labels._CHUNK_SIZE", 7)
    context, path = multiprocessing.get_context("fork"), tmp_path / "ledger.sqlite"
    ids = [f"p{number:04d}" for number in range(400)]
    ledger = AnnotationLedger(path, 100, ids)
    ledger.request([Query(identity) for identity in ids[::3]])
    process = context.Process(target=import_at_the_same_time, args=(path, ids[::3]))
    process.start()
    ledger.take_own(make_vault(["7"] * len(ids), ids=ids))
    process.join(60)
    assert process.exitcode == 0
    ledger.refresh()
    assert ledger.own_ids == set(ids) and {json.dumps(ledger.label(i)) for i in ids} == {'{"solution": "7"}'}
    # What was bought before the dataset came to it stays paid, each once.
    assert ledger.num_bought == ledger.spent == kinds(ledger).count("answer") <= 100
