"""Labels that are bought in training, when the votes of a batch are in."""

import numpy as np
import pytest

from pivottrace_trl import Answer, Route, TriageConfig
from pivottrace_trl.report.record import _evaluations

from ..conftest import attach, digit_reward, make_pool


# All prompts stay in training, and all votes that are not of one mind may be bought.
CONFIG = TriageConfig(probe_size=4, tau_high=1.0, min_agreement=0.0)


class Interrupted(Exception):
    pass


class Annotator:
    """Knows all labels but some; notes who asked for what and when."""

    batch_size = 2

    def __init__(self, declined=(), fails_after=None):
        self.asked: list[tuple[int, str]] = []
        self.declined, self.fails_after, self.step = set(declined), fails_after, lambda: 0

    def ask(self, queries):
        for query in queries:
            if len(self.asked) == self.fails_after:
                raise ConnectionError("the line is dead")
            question = query.row["prompt"][0]["content"]
            self.asked.append((self.step(), question))
            number = int(question.split("+")[0])
            yield Answer(query.prompt_id, None if number in self.declined else str(number + number % 7), "me")


@pytest.fixture
def make_run(make_trainer):
    """A trainer with a callback that buys after the rollouts; `stop_at` is a step that is never made."""

    def make(budget=16, annotator=None, stop_at=None, config=CONFIG, reward=digit_reward, buy="after", **options):
        pool = make_pool(32)
        pool = pool if annotator is None else pool.remove_columns("solution")
        trainer = make_trainer(pool, reward, **{"num_train_epochs": 2, **options})
        callback = attach(trainer, budget, config=config, annotator=annotator, buy=buy)
        # A random model is right so seldom that the gate would object to buying for it.
        callback._buyer._objection = lambda: None
        if annotator is not None:
            annotator.step = lambda: trainer.state.global_step
        step = trainer.training_step

        def step_or_stop(*args, **kwargs):
            if trainer.state.global_step == stop_at:
                raise Interrupted
            return step(*args, **kwargs)

        trainer.training_step = step_or_stop
        return trainer, callback

    return make


def bought(callback) -> list[str]:
    """Prompts in the order in which they were paid for, and the epoch that asked."""
    events = callback.ledger.events()
    return [(e["prompt_id"], e["purpose"]) for e in events if e["kind"] == "answer"]


def watch(callback) -> list[tuple[list[int], list[float], list[int], np.ndarray]]:
    """Of each batch: its rows, their values, what was bought, and the routes that the sampler keeps to."""
    batches, buy = [], callback.label_router.buy

    def watched(rows):
        router = callback.router
        is_open = [not router.evidence.is_labelled[row] for row in rows]
        values = router.values.of(np.array(rows), router.evidence.agreement[rows]).tolist()
        got = buy(rows)
        batches.append((rows, [v if o else -1.0 for v, o in zip(values, is_open)], got, callback.sampler.routes))
        return got

    callback.label_router.buy = watched
    return batches


def test_the_budget_lasts_over_the_run_and_goes_to_what_is_worth_most(make_run):
    trainer, callback = make_run(budget=20)
    batches = watch(callback)
    trainer.train()
    probes, later = bought(callback)[:4], bought(callback)[4:]
    assert {purpose for _, purpose in probes} == {"probe"} and {purpose for _, purpose in later} == {"annotate"}
    assert len(batches) == trainer.state.max_steps == 32 and callback.ledger.num_left == 0
    # Sixteen labels over 32 batches of two groups: one in two batches, from the first epoch to the last.
    spent = np.cumsum([len(got) for _, _, got, _ in batches])
    assert abs(spent - np.arange(1, 33) / 2).max() <= 2 and spent[-1] == 16
    for rows, values, got, _ in batches:
        assert all(row in rows for row in got)
        left = [value for row, value in zip(rows, values) if row not in got]
        assert not got or min(values[rows.index(row)] for row in got) >= max(left, default=0.0)
        assert all(values[rows.index(row)] > 0 for row in got)


def test_a_label_is_used_in_the_batch_that_it_was_bought_for(make_run):
    shown = {}

    def reward(prompts, completions, solution, **kwargs):
        for prompt, label in zip(prompts, solution):
            shown.setdefault((trainer.state.global_step, prompt[0]["content"]), set()).add(label)
        return digit_reward(completions, solution)

    trainer, callback = make_run(annotator=(annotator := Annotator()), reward=reward)
    batches = watch(callback)
    trainer.train()
    in_training = annotator.asked[4:]
    assert len(in_training) == 12 and len({question for _, question in annotator.asked}) == 16
    for step, question in in_training:
        number = int(question.split("+")[0])
        # This step and every later one.
        for (when, asked), labels in shown.items():
            if asked == question and when >= step:
                assert labels == {str(number + number % 7)}
        assert (step, question) in shown
    rows = [row for _, _, got, _ in batches for row in got]
    assert (callback.router.routes[rows] == Route.ANNOTATE).all() and callback.router.evidence.is_labelled[rows].all()
    # A whole group was verified, which is evidence at once.
    assert (callback.router.evidence.num_verified[rows] == 4).all()
    # The plan of an epoch stays as it was when the epoch began; the next one knows.
    for epoch in range(2):
        first, *others = [routes for _, _, _, routes in batches[epoch * 16 : epoch * 16 + 16]]
        assert all((routes == first).all() for routes in others)
    early = [row for _, _, got, _ in batches[:16] for row in got]
    assert early and (batches[-1][3][early] == Route.ANNOTATE).all() and (batches[0][3][early] == Route.WEAK).all()


def test_what_is_neither_bought_nor_trusted_gets_no_reward(make_run):
    trainer, callback = make_run(config=TriageConfig(probe_size=4, tau_high=1.0, min_agreement=1.0))
    batches = watch(callback)
    resolve, withheld = callback.label_router.resolve, []
    callback.label_router.resolve = lambda *args: withheld.append(resolve(*args)) or withheld[-1]
    trainer.train()
    labels = {row: label for batch in withheld for row, label in zip(np.repeat(batch.rows, 4), batch.labels)}
    assert any(label is None for label in labels.values()) and len(batches) == 32
    for batch in withheld:
        for row, label, is_bought in zip(np.repeat(batch.rows, 4), batch.labels, batch.is_bought):
            assert is_bought or label is None or callback.router.evidence.agreement[row] == 1.0


def test_reused_batches_are_looked_at_once(make_run):
    trainer, callback = make_run(num_iterations=2, steps_per_generation=2, gradient_accumulation_steps=2)
    batches = watch(callback)
    trainer.train()
    # 64 prompts in batches of four, each trained on twice, two micro-batches a step.
    assert len(batches) == 16 and trainer.state.max_steps == 32
    assert callback.ledger.num_left == 0 and len({row for rows, *_ in batches for row in rows}) == 32
    spent = np.cumsum([len(got) for _, _, got, _ in batches])
    assert abs(spent - np.arange(1, 17) * 12 / 16).max() <= 3


@pytest.mark.parametrize("stop_at", [11, 21])
def test_a_killed_run_buys_the_same_when_it_goes_on(stop_at, make_run, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6}
    annotator = Annotator(declined=[3, 8, 20])
    trainer, callback = make_run(annotator=annotator, output_dir=str(tmp_path / "whole"), **options)
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    killed = Annotator(declined=[3, 8, 20])
    first, other = make_run(annotator=killed, output_dir=str(tmp_path / "killed"), stop_at=stop_at, **options)
    with pytest.raises(Interrupted):
        first.train()
    lost = [question for step, question in killed.asked if step >= stop_at - stop_at % 6]
    assert lost
    other.ledger.close()
    resumed, again = make_run(annotator=killed, output_dir=str(tmp_path / "killed"), **options)
    resumed.train(resume_from_checkpoint=True)
    # Nobody is asked twice, and in the end the same was bought and learnt.
    assert [question for _, question in killed.asked] == [question for _, question in annotator.asked]
    assert bought(again) == bought(callback) and again.router.evidence.num_verified.tolist() == (
        callback.router.evidence.num_verified.tolist()
    )
    for name, parameter in resumed.model.named_parameters():
        if parameter.requires_grad:
            assert (parameter == weights[name]).all()


def test_an_annotator_that_fails_in_training_stops_it_and_nothing_is_paid_twice(make_run, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6}
    annotator = Annotator(fails_after=9)
    trainer, callback = make_run(annotator=annotator, **options)
    with pytest.raises(RuntimeError, match="the line is dead"):
        trainer.train()
    assert callback.ledger.num_bought == 9 and trainer.state.global_step > 0
    callback.ledger.close()
    annotator.fails_after = None
    trainer, callback = make_run(annotator=annotator, **options)
    trainer.train(resume_from_checkpoint=True)
    assert len(annotator.asked) == len({question for _, question in annotator.asked}) == 16


def test_nothing_is_bought_while_the_gate_objects(make_run, caplog):
    trainer, callback = make_run(budget=20)
    callback._buyer._objection = lambda: "no response is right" if 8 <= trainer.state.global_step < 16 else None
    batches = watch(callback)
    trainer.train()
    spent = [len(got) for _, _, got, _ in batches]
    assert sum(spent[8:16]) == 0 and caplog.text.count("No more labels are bought for now") == 1
    # What was not spent meanwhile is kept, and spent later.
    assert sum(spent[16:20]) > 2 and callback.ledger.num_left == 0


def test_votes_that_were_verified_say_how_often_votes_are_wrong(make_run):
    trainer, callback = make_run()
    trainer.train()
    verified = callback.router.values.errors.state_dict()
    # Each label tells of one vote: that of the first group, which was cast without it.
    assert 12 <= len(verified) <= 16
    assert {is_wrong for *_, is_wrong in verified} == {True, False}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"buy": "later"}, "`buy` is 'later'"),
        ({"buy": "after", "annotator": "queue"}, "people answer later"),
    ],
)
def test_what_cannot_be_bought_so_is_refused(options, match, make_trainer):
    trainer = make_trainer()
    before = dict(vars(trainer))
    with pytest.raises(ValueError, match=match):
        attach(trainer, 16, **options)
    assert vars(trainer) == before


def test_an_evaluation_knows_what_was_bought_by_then(make_run):
    options = {"eval_strategy": "steps", "eval_steps": 5, "per_device_eval_batch_size": 4, "num_generations_eval": 4}
    trainer, callback = make_run(inputs={"eval_dataset": make_pool(40).select(range(36, 40))}, **options)
    batches = watch(callback)
    trainer.train()
    seen = _evaluations(trainer.state.log_history, callback.ledger.num_bought)[""]
    spent = 4 + np.cumsum([len(got) for _, _, got, _ in batches])
    assert seen.labels.tolist() == [spent[step - 1] for step in seen.steps] and len(set(seen.labels)) > 3
