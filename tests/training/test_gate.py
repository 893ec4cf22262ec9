"""What happens before money is spent: what vote and reward read, what rewards mean, and whether the policy gets on."""

import asyncio
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest
from datasets import Features, Value
from trl import GRPOTrainer, RLOOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl import PivotDensityCallback, Route

from ..conftest import FormatBy, attach, make_pool


# With a budget of 64 labels, 32 of them are probes.
POOL = make_pool(72)
LENGTH = 12
TEXT = FormatBy(lambda text: text or None)


def verifier(wrong: float = 0.0, right: float = 1.0) -> Callable:
    """A reward function that compares the whole text with the label."""

    def reward(completions, solution, **kwargs):
        texts = [completion[0]["content"] for completion in completions]
        return [right if text == label else wrong for text, label in zip(texts, solution, strict=True)]

    return reward


def say_instead(trainer, text_of) -> None:
    """Let the policy answer the prompt `i+j=?` with `text_of(i)`, cut off where that is longer than allowed."""
    tokenizer = trainer._tokenizer

    def generate(prompt_ids, *rest):
        rows = [int("".join(tokenizer.convert_ids_to_tokens(ids)).removeprefix("<user>").split("+")[0])
                for ids in prompt_ids]  # fmt: skip
        texts = [tokenizer(text_of(row))["input_ids"] + [tokenizer.eos_token_id] for row in rows]
        ids = [ids[: trainer.args.max_completion_length] for ids in texts]
        return (ids, None) if isinstance(trainer, GRPOTrainer) else ids

    trainer._generate_single_turn = generate


def right(row: int) -> str:
    return POOL["solution"][row]


def wrong(row: int) -> str:
    return str(int(right(row)) + 1)


def half(row: int) -> str:
    return right(row) if row % 2 else wrong(row)


@pytest.fixture
def route(make_trainer):
    """Survey and route the pool for a policy that says what it is told, without training."""

    def survey(text_of, reward=None, kind=GRPOTrainer, train=False, **options):
        settings = {"kind": kind, "max_completion_length": LENGTH, "max_steps": 2}
        trainer = make_trainer(POOL, reward_funcs=reward or verifier(), **settings)
        say_instead(trainer, text_of)
        callback = attach(trainer, 64, **{"answer_format": TEXT, **options})
        trainer.train() if train else trainer.get_train_dataloader()
        return callback

    return survey


SCALES = {"minus-one": (-1.0, 1.0), "two": (0.0, 2.0), "ten": (3.0, 10.0), "tenth": (0.0, 0.1), "close": (0.6, 0.9)}


@pytest.mark.parametrize("scale", SCALES)
def test_a_threshold_of_ones_own_makes_every_scale_the_same(scale, route, caplog):
    low, high = SCALES[scale]
    middle = (low + high) / 2
    threshold = middle if scale == "two" else lambda reward: reward > middle
    callback = route(half, verifier(low, high), success_threshold=threshold)
    rows = callback.router.probes
    assert callback.router.evidence.pass_rate[rows].tolist() == [row % 2 for row in rows.tolist()]
    assert callback.summary()["first_responses"]["right"] == sum(rows % 2) > 8
    assert "other rewards than 0 and 1" not in caplog.text and "No more labels" not in caplog.text


@pytest.mark.parametrize("scale", SCALES)
def test_other_scales_are_told_before_the_rest_is_bought(scale, route, caplog):
    low, high = SCALES[scale]
    if high < 0.5:
        # Nothing that is right would count as right: the probes are not even bought.
        with pytest.raises(ValueError, match=r"does not pay 64 of 64 .*`success_threshold`.*Nothing was bought"):
            route(half, verifier(low, high))
        return
    callback = route(lambda row: wrong(row) if row % 3 else right(row), verifier(low, high))
    (told,) = [record.getMessage() for record in caplog.records if "other rewards than 0 and 1" in record.message]
    assert f"({low:.4g}, {high:.4g})" in told and "`success_threshold=`" in told
    if low >= 0.5:
        # Everything counts as right, which says nothing.
        assert "No more labels are bought for now" in caplog.text and "one side of 0.5" in caplog.text
        assert callback.summary()["annotated"] == 32
    else:
        assert callback.summary()["annotated"] > 32


@pytest.mark.parametrize("threshold", ["0.5", True, float("nan"), float("inf"), [1.0]])
def test_impossible_thresholds_are_refused(threshold, route):
    with pytest.raises(ValueError, match="`success_threshold` is .* but must be a number"):
        route(half, success_threshold=threshold)


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_a_pool_that_is_mastered_ends_with_a_message_and_the_budget_left(kind, route, caplog, tmp_path):
    callback = route(right, kind=kind, train=True)
    state = callback._trainer.state
    assert state.global_step == 0
    assert "Every prompt of the pool is mastered, going by 32 labels" in caplog.text
    assert "32 labels of the budget are left" in caplog.text
    # The routing that found it is on record.
    (logged,) = [entry for entry in state.log_history if "pivottrace/num_discard" in entry]
    assert logged["pivottrace/num_discard"] == 72 and logged["pivottrace/labels_left"] == 32
    table = pq.read_table(tmp_path / "run" / "_pivottrace" / "routes-epoch-000.parquet")
    assert set(table["route"].to_pylist()) == {"discard"}
    assert callback.summary()["first_responses"]["right"] == 32


def test_a_pool_that_is_mastered_later_ends_without_another_step(make_trainer, caplog):
    trainer = make_trainer(POOL, reward_funcs=verifier(), max_completion_length=LENGTH, num_train_epochs=3)
    say_instead(trainer, half)
    callback = attach(trainer, 64, answer_format=TEXT)
    route = callback.router.route

    def master(epoch, *args):
        result = route(epoch, *args)
        if epoch:
            result.routes[:] = callback.router.plan[:] = Route.DISCARD
        return result

    callback.router.route = master
    trainer.train()
    assert trainer.state.epoch == 1.0
    assert [e["pivottrace/num_discard"] for e in trainer.state.log_history if "pivottrace/num_discard" in e][-1] == 72
    assert "Every prompt of the pool is mastered" in caplog.text


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_a_policy_that_is_never_right_stops_the_buying(kind, route, caplog):
    callback = route(wrong, kind=kind, train=True)
    assert callback._trainer.state.global_step == 2
    assert callback.summary()["annotated"] == callback.summary()["probes"] == 32
    assert "No more labels are bought for now, and 32 of the budget are left: none of 32 responses" in caplog.text
    for cause in ("chat template", "reward function", "`max_completion_length`"):
        assert cause in caplog.text


def test_few_wrong_probes_are_no_proof(make_trainer, caplog):
    trainer = make_trainer(POOL, reward_funcs=verifier(), max_completion_length=LENGTH)
    say_instead(trainer, wrong)
    callback = attach(trainer, 16, answer_format=TEXT)
    trainer.get_train_dataloader()
    assert callback.summary()["annotated"] == 16
    assert "No more labels" not in caplog.text


def test_the_buying_goes_on_once_training_is_right_now_and_then(make_trainer):
    trainer = make_trainer(POOL, reward_funcs=verifier(), max_completion_length=LENGTH, num_train_epochs=2)
    callback = attach(trainer, 64, answer_format=TEXT)
    say_instead(trainer, lambda row: (half if trainer.state.global_step else wrong)(row))
    bought = []
    note = callback.report.write_routing
    callback.report.write_routing = lambda *args: bought.append(callback.ledger.num_bought) or note(*args)
    trainer.train()
    assert bought[0] == 32 < bought[1]


def test_responses_that_are_cut_off_stop_the_buying(route, caplog):
    """Two of three responses do not end; what ends is right."""
    callback = route(lambda row: right(row) if row % 3 == 0 else "1" * 40)
    seen = callback.summary()["first_responses"]
    assert seen["cut_off"] == pytest.approx(2 / 3) and seen["right"] > 4
    assert callback.summary()["annotated"] == 32
    assert "67% of the first responses were cut off, and none of" in caplog.text
    assert "Raise `max_completion_length`" in caplog.text


def test_responses_that_are_right_although_cut_off_do_not(route, caplog):
    def ones_or_equal(completions, solution, **kwargs):
        texts = [completion[0]["content"] for completion in completions]
        return [float(text == LENGTH * "1" or text == label) for text, label in zip(texts, solution, strict=True)]

    route(lambda row: "1" * 40 if row % 3 else wrong(row), ones_or_equal)
    assert "No more labels are bought" not in caplog.text


def test_where_nothing_can_be_rewarded_it_ends_before_the_first_step(route):
    with pytest.raises(RuntimeError, match=r"Nothing in this run can be rewarded: none of 32 probes.*32 labels were"):
        route(wrong, answer_format=FormatBy(lambda text: None))


def test_a_reward_for_the_form_can_teach_a_policy_that_gives_no_answer_yet(route):
    def form_reward(completions, **kwargs):
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    callback = route(wrong, [verifier(), form_reward], train=True, answer_format=FormatBy(lambda text: None))
    assert callback._trainer.state.global_step == 2 and callback.summary()["annotated"] == 32


def test_one_probe_that_is_right_does_not_end_the_training(make_trainer, caplog):
    trainer = make_trainer(POOL, reward_funcs=verifier(), max_completion_length=LENGTH, max_steps=2)
    say_instead(trainer, right)
    callback = attach(trainer, 1, answer_format=TEXT)
    trainer.train()
    assert trainer.state.global_step == 2 and callback.summary()["first_responses"]["right"] == 1
    assert "mastered" not in caplog.text


def test_a_budget_that_is_spent_is_not_saved(make_trainer, caplog):
    trainer = make_trainer(POOL.select(range(30)), verifier(), max_completion_length=LENGTH, num_train_epochs=2)
    say_instead(trainer, wrong)
    callback = attach(trainer, 30, answer_format=TEXT)
    trainer.train()
    assert callback.summary()["annotated"] == 30 and "No more labels" not in caplog.text


def test_what_it_found_is_said_before_and_what_the_probes_showed_after(route, capsys):
    callback = route(half, train=True)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("PivotTrace")
    assert lines[start + 1 : start + 7] == [
        "  Pool      72 prompts; locked up: `solution`",
        "  Budget    64 labels (88.9% of the pool), from the dataset",
        "  Probes    32, part of the budget",
        f"  Answers   read as {TEXT.name}; `reward` tells which are right",
        "  Score     TotalEntropy; labels are bought at each routing",
        "  First     answer all 72 prompts, in at most 12 tokens each",
    ]
    lines = [line for line in lines if line.startswith("PivotTrace: ")]
    seen = callback.summary()["first_responses"]
    assert seen["probes"] == 32 and seen["unanswered"] == 0.0
    assert lines[0].startswith(
        f"PivotTrace: {seen['right']} of 32 probes right ({seen['right'] / 32:.0%}, 95% interval"
    )
    assert "right from wrong (AUROC 0." in lines[0] and len(lines) == 1
    assert lines[0].endswith("of all first responses 0% cut off, 0% without an answer")


def box(row: int) -> str:
    return f"\\boxed{{{right(row)}}}"


def plain(row: int) -> str:
    return f"The answer is {right(row)}."


@pytest.fixture
def route_mathematics(make_trainer):
    """Survey and route with TRL's own reward, which reads no number that is not boxed."""

    def survey(text_of):
        trainer = make_trainer(POOL, reward_funcs=accuracy_reward, max_completion_length=40)
        say_instead(trainer, text_of)
        return attach(trainer, 64, answer_format="math")

    return survey


def test_a_reward_that_reads_no_answer_stops_it_before_anything_is_bought(route_mathematics):
    callback = route_mathematics(plain)
    with pytest.raises(ValueError) as caught:
        callback._trainer.get_train_dataloader()
    message = str(caught.value)
    assert "`accuracy_reward` does not pay 64 of 64 responses (100%) for their own answer" in message
    assert "it gives 0.0 to 'The answer is 0.' with the label '0'" in message
    assert "`answer_format`" in message and message.endswith("Nothing was bought.")
    assert callback.ledger.num_bought == 0


def test_the_share_that_it_does_not_read_is_told_before_anything_is_bought(route_mathematics, caplog):
    callback = route_mathematics(lambda row: plain(row) if row % 4 == 0 else box(row))
    told, request = [], callback.ledger.request
    callback.ledger.request = lambda *args: told.append("does not pay" in caplog.text) or request(*args)
    callback._trainer.get_train_dataloader()
    assert "does not pay 16 of 64 responses (25%)" in caplog.text
    assert told[0] and callback.ledger.num_bought >= 32


def test_a_reward_that_reads_all_of_them_is_not_remarked_upon(route_mathematics, caplog):
    route_mathematics(box)._trainer.get_train_dataloader()
    assert "does not pay" not in caplog.text


def test_a_slow_verifier_is_asked_a_bounded_number_of_times(route):
    sizes = []

    async def reward(completions, solution, **kwargs):
        sizes.append(len(completions))
        await asyncio.sleep(0)
        return verifier()(completions, solution)

    callback = route(half, reward)
    assert sizes[0] == 64 and sum(sizes) == 64 + callback.summary()["annotated"]


def test_a_verifier_that_fails_on_answers_says_so(route):
    def reward(completions, solution, **kwargs):
        return [float(label["value"] == 1) for label in solution]

    with pytest.raises(
        RuntimeError, match=r"`reward` fails when the label is the answer of the response itself \(Typ"
    ):
        route(half, reward)


@pytest.mark.parametrize("misfits", [range(0, 72, 2), range(72)])
def test_a_bought_label_that_does_not_fit_its_column_is_shown_to_nobody(misfits, make_trainer, caplog):
    pool = POOL.map(lambda row: {"solution": None}, features=Features(
        {**POOL.features, "solution": Value("int64")}
    ))  # fmt: skip
    shown = []

    def reward(completions, solution, **kwargs):
        shown.extend(solution)
        return [float(completion[0]["content"] == str(label)) for completion, label in zip(completions, solution)]

    def annotator(rows):
        asked = [int(row["prompt"][0]["content"].split("+")[0]) for row in rows]
        return ["1/2" if row in misfits else right(row) for row in asked]

    trainer = make_trainer(pool, reward, max_completion_length=LENGTH, max_steps=20)
    say_instead(trainer, half)
    callback = attach(trainer, 16, annotator=annotator, answer_format="number")
    trainer.train()
    assert "A bought label is not used: '1/2' is not whole" in caplog.text
    assert shown and all(isinstance(label, int) for label in shown)
    # Votes on these prompts are no pass rates: nothing but the first response was verified.
    rows = [row for row, identity in enumerate(callback.router.prompt_ids) if callback.ledger.label(identity)]
    verified = callback.router.evidence.num_verified
    assert all(verified[row] == 1 for row in rows if row in misfits)
    assert len(misfits) == 72 or max(verified[rows]) > 1


@pytest.mark.parametrize("annotator", ["queu", ["1"]])
def test_an_annotator_that_cannot_be_asked_is_refused_before_the_pool_is_answered(annotator, make_trainer):
    trainer = make_trainer(POOL, verifier())
    with pytest.raises(
        ValueError, match='`annotator` is .* but must be `"queue"`, a function .* an `Oracle`, or a list'
    ):
        PivotDensityCallback(trainer, 16, annotator=annotator)
    assert "solution" in trainer.train_dataset.column_names
