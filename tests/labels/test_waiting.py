"""People answer while training runs, or training waits for them."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from pivottrace_trl import AnnotationLedger, Answer, PivotDensityCallback, Query, Route
from pivottrace_trl.labels.waiting import People

from ..conftest import attach, make_pool


def answer_queue(path, num_answers=None):
    ledger = AnnotationLedger.open(path)
    queue = ledger.queue()[:num_answers]
    ledger.record([Answer(query.prompt_id, {"solution": "4"}, "ann") for query in queue])
    ledger.close()
    return len(queue)


@pytest.mark.parametrize(("share", "polls"), [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_waits_for_a_share_of_the_queue(share, polls, tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = AnnotationLedger(path, 10, [f"p{n}" for n in range(10)])
    ledger.request([Query(f"p{n}", f"text {n}") for n in range(10)])
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        answer_queue(path, 1)

    assert ledger.buy(People(ledger, share, poll_seconds=0.5, sleep=sleep)) == 0
    assert naps == [0.5] * polls and ledger.num_bought == polls
    empty = AnnotationLedger(tmp_path / "empty.sqlite", 10, ["p0"])
    empty.buy(People(empty, share, sleep=sleep))
    assert len(naps) == polls
    ledger.buy(People(ledger, sleep=sleep))  # asked to wait for nobody
    assert len(naps) == polls


@pytest.mark.parametrize("is_shown", [True, False])
def test_the_display_is_drawn_only_where_it_is_wanted(is_shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    path = tmp_path / "ledger.sqlite"
    ledger = AnnotationLedger(path, 10, ["p0"])
    ledger.request([Query("p0", "text")])
    ledger.buy(People(ledger, 1.0, is_shown=is_shown, sleep=lambda seconds: answer_queue(path)))
    assert bool(capsys.readouterr().out) == is_shown


def test_a_log_is_told_every_half_minute(tmp_path, monkeypatch, capsys):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 10, ["p0", "p1"])
    ledger.request([Query("p0", "text"), Query("p1", "text")])
    seconds = 0.0

    def sleep(nap):
        nonlocal seconds
        seconds += nap
        if seconds in (40.0, 70.0):
            answer_queue(ledger.path, 1)

    monkeypatch.setattr("pivottrace_trl.labels.waiting.time", SimpleNamespace(monotonic=lambda: seconds))
    ledger.buy(People(ledger, 1.0, sleep=sleep))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:72] for line in lines] == [
        "Training waits for annotations: 0 of 2 needed to go on, for 0 s. Answer ",
        "Training waits for annotations: 0 of 2 needed to go on, for 30 s. Answer",
        "Training waits for annotations: 1 of 2 needed to go on, for 1 min 00 s. ",
    ]
    assert lines[0].endswith(f"with: pivottrace desk {tmp_path}")


@pytest.mark.parametrize("share", [0.0, -1, 1.5, float("nan")])
def test_impossible_shares(share, tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 10, ["p0"])
    with pytest.raises(ValueError, match="`wait_for_annotations` is .* share of the queue"):
        People(ledger, share)


def test_nobody_waits_for_what_the_budget_does_not_pay_for(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 2, [f"p{n}" for n in range(4)])
    ledger.request([Query(f"p{n}", score=-n) for n in range(4)])
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        answer_queue(ledger.path, 1)

    ledger.buy(People(ledger, 1.0, is_shown=False, sleep=sleep))
    assert len(naps) == 2 and ledger.num_left == 0
    ledger.buy(People(ledger, 1.0, is_shown=False, sleep=sleep))
    assert len(naps) == 2


def attach_queue(trainer, **options):
    return attach(trainer, 10, annotator="queue", **options)


def test_answers_that_arrive_while_it_runs(make_trainer):
    trainer = make_trainer(dataset=make_pool().remove_columns("solution"), num_train_epochs=3)
    callback = attach_queue(trainer)
    routings = []
    note = callback.report.write_routing

    def spy(epoch, router, result):
        routings.append(result.counts())
        note(epoch, router, result)
        answer_queue(callback.ledger.path)

    callback.report.write_routing = spy
    trainer.train()
    # Nothing is known in the first epoch; in the later ones what was answered in between is used.
    assert routings[0] == {"discard": 0, "weak": 32, "annotate": 0}
    assert routings[1]["annotate"] + routings[1]["discard"] > 0
    assert callback.summary()["annotated"] == 10
    texts = {query.prompt for query in AnnotationLedger.open(callback.ledger.path).queue()}
    assert all(text.endswith("=?") for text in texts)


def test_training_waits(make_trainer):
    trainer = make_trainer(dataset=make_pool().remove_columns("solution"))
    with pytest.raises(ValueError, match="there is nothing to wait for"):
        PivotDensityCallback(trainer, annotator=lambda rows: ["1"] * len(rows), wait_for_annotations=0.5)
    callback = attach_queue(trainer, wait_for_annotations=1.0)
    is_over = threading.Event()

    def person():
        while not is_over.is_set():
            if callback.ledger.path.exists():
                answer_queue(callback.ledger.path, 2)
            time.sleep(0.05)

    callback.router.oracle._poll_seconds = 0.05
    thread = threading.Thread(target=person)
    thread.start()
    try:
        trainer.train()
    finally:
        is_over.set()
        thread.join()
    assert callback.summary()["annotated"] == 10
    assert (callback.router.routes[callback.router.probes] != Route.WEAK).any()


def test_a_score_learns_from_every_probe_that_is_answered(make_trainer):
    """One more answer an epoch: each time the score is fitted to all of them, and fresher scores stay."""
    dataset = make_pool(16).remove_columns("solution")
    trainer = make_trainer(dataset=dataset, num_train_epochs=4, save_strategy="epoch")
    callback = attach_queue(trainer, estimator="probe_calibrated")
    learnt, note, weights = [], callback.report.write_routing, []

    def answer_one(epoch, router, result):
        learnt.append(list(callback.scorer.probes))
        weights.append(callback.scorer.estimator.weights)
        note(epoch, router, result)
        answer_queue(callback.ledger.path, 1)

    callback.report.write_routing = answer_one
    trainer.train()
    assert [len(rows) for rows in learnt] == [0, 1, 2, 3] and set(learnt[1]) < set(learnt[2]) < set(learnt[3])
    assert weights[1] != weights[2] != weights[3]
    # A run that is resumed after the second epoch has learnt from two, and goes on with the third and the fourth.
    resumed = make_trainer(dataset=dataset, num_train_epochs=4)
    again = attach_queue(resumed, estimator="probe_calibrated")
    steps = trainer.state.global_step // 4
    resumed.train(resume_from_checkpoint=str(callback.output_dir.parent / f"checkpoint-{3 * steps}"))
    assert set(again.scorer.probes) > set(learnt[2])


def test_scores_of_training_outlive_what_late_probes_teach(make_trainer):
    trainer = make_trainer(dataset=make_pool().remove_columns("solution"), num_train_epochs=2)
    callback = attach_queue(trainer, estimator="probe_calibrated")
    route, seen = callback.router.route, {}

    def look(epoch, *args):
        # What training has rolled out has a vote.
        seen["rows"] = np.isfinite(callback.router.evidence.agreement)
        seen["before"] = callback.router.scores.copy()
        answer_queue(callback.ledger.path, 5)
        result = route(epoch, *args)
        seen["after"] = callback.router.scores.copy()
        return result

    callback.router.route = look
    trainer.train()
    assert callback.scorer.probes and 16 <= seen["rows"].sum()
    assert (seen["before"] == seen["after"])[seen["rows"]].all()
