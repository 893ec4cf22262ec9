"""The two lines, end to end on a tiny random model."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pivottrace_trl import (
    ESTIMATORS,
    PivotDensityCallback,
    PivotRoutedSampler,
    Rollout,
    Route,
    TriageConfig,
    trace_rollouts,
)
from pivottrace_trl.estimators import MeanEntropy
from pivottrace_trl.labels import LabelVault
from pivottrace_trl.tracing import OPTIONAL_SIGNALS
from pivottrace_trl.training.policy import TrainerPolicy
from pivottrace_trl.training.rewards import ROW_COLUMN, RoutedReward

from .conftest import FormatBy, attach, digit_reward, first_digit, make_model, make_pool


def yielded_rows(trainer) -> list[list[int]]:
    """Record the rows of every generation batch of a run."""
    batches = []
    original = trainer._generate_and_score_completions

    def spy(inputs):
        batches.append([example[ROW_COLUMN] for example in inputs])
        return original(inputs)

    trainer._generate_and_score_completions = spy
    return batches


@pytest.mark.pictures
def test_two_lines_route_a_run(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=3)
    callback = attach(trainer)
    batches = yielded_rows(trainer)
    trainer.train()
    summary = callback.summary()
    assert summary["pool_size"] == 32
    assert summary["annotation_budget"] == 16
    assert 0 < summary["annotated"] <= 16
    assert sum(summary["routes"].values()) == 32
    assert summary["num_routings"] == 3
    folder = tmp_path / "run" / "_pivottrace"
    per_epoch = len(batches) // 3
    for epoch in range(3):
        table = pq.read_table(folder / f"routes-epoch-{epoch:03d}.parquet").to_pydict()
        assert len(table["route"]) == 32
        seen = {row for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for row in batch}
        assert not [row for row in seen if table["route"][row] == "discard"]
    for name in ("ledger.sqlite", "trace.png", "route_flow.png", "summary.json"):
        assert (folder / name).stat().st_size > 0
    logged = set().union(*trainer.state.log_history)
    assert {"pivottrace/num_discard", "pivottrace/num_weak", "pivottrace/num_annotate"} <= logged
    assert {"pivottrace/labels_bought", "pivottrace/labels_left", "pivottrace/density_weak"} <= logged
    assert {"pivottrace/vote_agreement", "pivottrace/vote_accuracy"} <= logged
    assert {"pivottrace/score_auroc", "pivottrace/calibration_error"} <= logged


@pytest.mark.parametrize("budget", [0.1, 0.5, 3])
def test_no_reward_ever_sees_a_label_that_was_not_bought(budget, make_trainer):
    """Every label is poisoned with its own mark; whatever a reward function is passed is searched for marks."""
    pool = make_pool()
    marks = [f"label-{row:02d}-{row % 10}" for row in range(len(pool))]
    pool = pool.remove_columns("solution").add_column("solution", marks).add_column("answer", [m[::-1] for m in marks])
    seen: set[str] = set()

    def spy(prompts, completions, completion_ids, solution, **kwargs):
        passed = repr([prompts, completions, solution, {k: v for k, v in kwargs.items() if k != "trainer_state"}])
        seen.update(mark for mark in marks if mark in passed or mark[::-1] in passed)
        return digit_reward(completions, solution)

    def bystander(completions, **kwargs):
        seen.update(mark for mark in marks if mark in repr(kwargs) or mark[::-1] in repr(kwargs))
        return [0.1] * len(completions)

    opened: list[str] = []
    original = LabelVault.ask
    trainer = make_trainer(dataset=pool, reward_funcs=[spy, bystander], num_train_epochs=3)
    callback = attach(trainer, annotation_budget=budget, label_column="solution")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelVault, "ask", lambda self, ids: opened.extend(ids) or original(self, ids))
        trainer.train()
    ledger, ids = callback.ledger, callback.router.prompt_ids
    bought = {marks[row] for row, identity in enumerate(ids) if ledger.label(identity) is not None}
    assert seen and seen <= bought
    assert len(bought) == len(opened) == len(set(opened)) <= callback.summary()["annotation_budget"]
    # The trainer itself no longer holds the others either.
    assert set(trainer.train_dataset.column_names) == {"prompt", ROW_COLUMN}


def test_detach_puts_the_trainer_back(make_trainer):
    trainer = make_trainer()
    before, callbacks = dict(vars(trainer)), list(trainer.callback_handler.callbacks)
    callback = attach(trainer)
    assert vars(trainer) != before
    assert all(isinstance(reward, RoutedReward) for reward in trainer.reward_funcs)
    callback.detach()
    callback.detach()
    assert vars(trainer) == before
    assert all(vars(trainer)[name] is value for name, value in before.items())
    assert trainer.callback_handler.callbacks == callbacks
    assert trainer.train_dataset.column_names == ["prompt", "solution"]
    trainer.train()
    assert trainer.state.global_step == 16


def test_detach_after_training_leaves_no_hook(make_trainer):
    trainer = make_trainer()

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in trainer.model.modules())

    before = hooks()
    callback = attach(trainer)
    trainer.train()
    callback.detach()
    assert hooks() == before


def test_attaching_twice_or_too_late_is_refused(make_trainer):
    trainer = make_trainer(max_steps=1)
    callback = attach(trainer)
    with pytest.raises(RuntimeError, match="attached to this trainer already"):
        PivotDensityCallback(trainer)
    trainer.train()
    callback.detach()
    with pytest.raises(RuntimeError, match=r"Training has begun \(step 1\)"):
        PivotDensityCallback(trainer)


def test_forgetting_add_callback_is_refused(make_trainer):
    trainer = make_trainer(max_steps=1)
    callback = PivotDensityCallback(trainer)
    with pytest.raises(RuntimeError, match=r"trainer.add_callback\(callback\).*callback.detach\(\)"):
        trainer.train()
    callback.detach()
    trainer.train()


def test_epochs_have_the_planned_length(make_trainer):
    trainer = make_trainer(num_train_epochs=3)
    attach(trainer)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_a_callable_annotator_on_a_pool_without_labels(make_trainer):
    pool, asked = make_pool().remove_columns("solution"), []

    def annotator(rows):
        asked.extend(rows)
        return [None if index % 3 == 0 else "7" for index, _ in enumerate(rows)]

    trainer = make_trainer(dataset=pool, num_train_epochs=2)
    callback = attach(trainer, annotator=annotator, annotation_budget=10)
    trainer.train()
    assert all(set(row) == {"prompt"} for row in asked)
    assert 0 < callback.summary()["annotated"] <= 10


def test_an_annotator_that_fails_keeps_what_it_returned(make_trainer):
    pool = make_pool(64).remove_columns("solution")
    calls = []

    def annotator(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise ConnectionError("line is dead")
        return ["7"] * len(rows)

    trainer = make_trainer(dataset=pool)
    callback = attach(trainer, annotator=annotator, annotation_budget=60, config=TriageConfig(probe_size=40))
    with pytest.raises(RuntimeError, match="line is dead"):
        trainer.train()
    assert callback.summary()["annotated"] == 16
    # The same callback goes on from there.
    trainer.train()
    assert callback.summary()["annotated"] >= 40


def test_evaluation_is_untouched_and_leaves_no_evidence(make_trainer):
    seen = []

    def spy(completions, solution, **kwargs):
        seen.append((list(solution), ROW_COLUMN in kwargs))
        return digit_reward(completions, solution)

    trainer = make_trainer(reward_funcs=spy)
    trainer.eval_dataset = held_out = make_pool(36).select(range(32, 36))
    callback = attach(trainer)
    trainer.evaluate()
    assert {label for labels, _ in seen for label in labels} == set(held_out["solution"])
    assert not any(has_row for _, has_row in seen)
    assert callback.summary()["annotated"] == 0
    assert np.isnan(callback.router.evidence.agreement).all()


def test_answers_in_a_format_of_ones_own_reach_the_reward_as_they_are(make_trainer):
    shown = set()

    def choice_reward(completions, solution, **kwargs):
        shown.update(solution)
        return [float(label == "B") for label in solution]

    pool = make_pool(8).remove_columns("solution").add_column("solution", ["A"] * 8)
    trainer = make_trainer(pool, reward_funcs=choice_reward, max_steps=2)
    attach(trainer, annotation_budget=1, answer_format=FormatBy(lambda text: "B"))
    trainer.train()
    assert shown == {"A", "B"}  # the bought label and the votes


def test_published_shares_with_routes_that_stay(make_trainer, tmp_path):
    trainer = make_trainer(make_pool(30), num_train_epochs=3)
    config = TriageConfig(discard_ratio=0.4, reroutes=False)
    callback = attach(trainer, annotation_budget=0.3, estimator="pivot_count", config=config)
    batches = yielded_rows(trainer)
    trainer.train()
    assert callback.summary() == {
        "pool_size": 30, "annotation_budget": 9, "annotated": 9, "probes": 0, "num_routings": 1,
        "routes": {"discard": 12, "weak": 9, "annotate": 9},
        "first_responses": {"probes": 0, "right": 0, "cut_off": 28 / 30, "unanswered": 11 / 30},
    }  # fmt: skip
    discarded = set(np.flatnonzero(callback.router.routes == Route.DISCARD))
    seen = {row for batch in batches for row in batch}
    assert len(batches) == 3 * 9 and len(seen) == 18 and not seen & discarded
    # The lowest scores at the time of routing were discarded; training has traced the others since.
    table = pq.read_table(tmp_path / "run" / "_pivottrace" / "routes-epoch-000.parquet").to_pydict()
    lowest = np.argsort(table["score"], kind="stable")[:12]
    assert set(lowest) == discarded


def test_rerouting_uses_the_rollouts_and_forward_passes_of_training(make_trainer):
    trainer = make_trainer(num_train_epochs=2)
    generated, passes = [], []
    original = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: generated.append(len(ids)) or original(ids, *rest)
    callback = attach(trainer)

    def count(module, args, kwargs):
        if not kwargs.get("use_cache"):  # generation has a cache
            passes.append(callback.summary()["num_routings"])

    trainer.model.get_base_model().model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    assert callback.summary()["num_routings"] == 2
    in_training = trainer.state.global_step * 8
    assert sum(generated) == 32 + in_training  # one response a prompt before the first step, none at re-routing
    # Once the first routing is done, the losses are the only passes over whole sequences.
    assert len([routings for routings in passes if routings > 0]) == trainer.state.global_step


class NeedsEverything(MeanEntropy):
    needs = OPTIONAL_SIGNALS - {"agreement"}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # gemma2 caps its logits
def test_traces_of_training_are_those_of_a_separate_pass(temperature, architecture, make_trainer):
    options = {"temperature": temperature, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    options["gradient_checkpointing"] = architecture == "llama"
    model = make_model(architecture, attn_implementation="eager")
    trainer = make_trainer(model=model, learning_rate=0.0, num_iterations=2, max_steps=8, **options)
    callback = attach(trainer, estimator=NeedsEverything())
    traced, rollouts, take = {}, {}, callback._attachment._training_pass._on_traces

    def note_traces(rows, traces):
        assert not traced.keys() & set(rows)  # once, though every batch is trained on twice
        traced.update(zip(rows, traces, strict=True))
        take(rows, traces)

    callback._attachment._training_pass._on_traces = note_traces
    calculate_rewards = trainer._calculate_rewards

    def note_rollouts(inputs, prompts, completions, completion_ids):
        rows = [example[ROW_COLUMN] for example in inputs[::4]]
        prompt_ids = TrainerPolicy(trainer).tokenize(prompts[::4])
        rollouts.update(zip(rows, map(Rollout, prompt_ids, completion_ids[::4]), strict=True))
        return calculate_rewards(inputs, prompts, completions, completion_ids)

    trainer._calculate_rewards = note_rollouts
    trainer.train()
    assert len(traced) >= 16 and traced.keys() == rollouts.keys()
    rows = list(traced)
    expected, _ = trace_rollouts(
        trainer.model,
        [rollouts[row] for row in rows],
        0,
        callback.scorer.heads,
        NeedsEverything.needs,
        temperature=temperature,
    )
    for row, trace in zip(rows, expected, strict=True):
        if len(trace):  # empty responses are not passed through the model
            for name in sorted(trace.__dataclass_fields__.keys() - {"agreement"}):
                # Inner products of hidden states are large numbers.
                assert np.allclose(getattr(traced[row], name), getattr(trace, name), atol=1e-4, rtol=1e-4), name
    scores = callback.scorer.score([traced[row] for row in rows], callback.router.scores, rows).scores
    assert np.allclose(callback.router.scores[rows], scores)


def test_training_is_the_same_with_and_without_tracing(make_trainer):
    weights = []
    for is_traced in (True, False):
        trainer = make_trainer(num_train_epochs=1, gradient_checkpointing=True)
        callback = attach(trainer)
        if not is_traced:
            callback._attachment._training_pass.detach()
            callback._attachment._training_pass = None
        trainer.train()
        weights.append([parameter.clone() for parameter in trainer.model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


def test_weak_rows_are_rewarded_with_the_vote_or_not_at_all(make_trainer):
    """On a budget of one label nearly every row is weak."""
    seen = []

    def spy(completions, solution, trainer_state, **kwargs):
        if trainer_state.max_steps:  # not what it is asked before training
            seen.extend(zip((c[0]["content"] for c in completions), solution, strict=True))
        return digit_reward(completions, solution)

    trainer = make_trainer(reward_funcs=spy)
    callback = attach(trainer, annotation_budget=1, config=TriageConfig(min_agreement=0.75))
    trainer.train()
    labels = {label["solution"] for i in callback.router.prompt_ids if (label := callback.ledger.label(i))}
    votes = [(text, label) for text, label in seen if label not in labels]
    assert votes and all(len(label) == 1 and label.isdigit() for _, label in votes)
    withheld = [entry["pivottrace/withheld_ratio"] for entry in trainer.state.log_history if "loss" in entry]
    assert max(withheld) > 0
    groups = [votes[start : start + 4] for start in range(0, len(votes), 4)]
    for group in groups:
        assert sum(first_digit(text) == label for text, label in group) >= 3


def test_plain_text_prompts(make_trainer):
    def reward(completions, solution, **kwargs):
        assert all(isinstance(completion, str) for completion in completions)
        return [float(label[-1] in completion) for completion, label in zip(completions, solution)]

    pool = make_pool()
    plain = Dataset.from_dict({"prompt": [p[0]["content"] for p in pool["prompt"]], "solution": pool["solution"]})
    trainer = make_trainer(dataset=plain, reward_funcs=reward, max_steps=4)
    callback = attach(trainer)
    trainer.train()
    assert callback.summary()["annotated"] > 0


def test_reused_generations_and_accumulation(make_trainer):
    options = {"num_iterations": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    trainer = make_trainer(**options)
    callback, batches = attach(trainer), yielded_rows(trainer)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    for batch in batches:
        assert all(len(set(batch[start : start + 4])) == 1 for start in range(0, len(batch), 4))
    assert callback.summary()["num_routings"] == 2


def test_a_pool_of_four(make_trainer):
    trainer = make_trainer(dataset=make_pool(4), num_train_epochs=2)
    callback = attach(trainer, annotation_budget=0.293)
    trainer.train()
    assert callback.summary()["annotation_budget"] == callback.summary()["annotated"] == 1


def test_training_again_goes_on_from_the_evidence(make_trainer):
    trainer = make_trainer(max_steps=4)
    callback = attach(trainer)
    trainer.train()
    tokens = callback.num_scoring_tokens
    trainer.train()
    assert callback.num_scoring_tokens == tokens  # the pool is not scored a second time
    assert callback.summary()["num_routings"] == 2


def test_full_fine_tuning_and_gradient_checkpointing(make_trainer):
    trainer = make_trainer(peft_config=None, gradient_checkpointing=True, max_steps=2)
    callback = attach(trainer)
    trainer.train()
    assert callback.summary()["annotated"] > 0


@pytest.mark.bnb
def test_4bit_with_lora(make_trainer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        dtype=torch.float32,
    )
    trainer = make_trainer(model=model, max_steps=2, bf16=True)
    callback = attach(trainer)
    trainer.train()
    assert callback.summary()["annotated"] > 0
    assert np.isfinite(callback.router.scores).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(implementation, make_trainer):
    model = make_model("llama", attn_implementation=implementation)
    trainer = make_trainer(model=model, max_steps=1)
    callback = attach(trainer)
    trainer.train()
    assert model.config._attn_implementation == implementation
    assert np.isfinite(callback.router.densities).any()


def test_a_compiled_model(make_trainer):
    trainer = make_trainer(max_steps=2, torch_compile=True, torch_compile_backend="eager")
    callback = attach(trainer)
    traced, take = [], callback._attachment._training_pass._on_traces
    callback._attachment._training_pass._on_traces = lambda rows, traces: traced.extend(rows) or take(rows, traces)
    trainer.train()
    assert len(traced) == 4 and np.isfinite(callback.router.densities).any()


def test_a_resumed_run_goes_on_with_the_same_routes(make_trainer, tmp_path):
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 12}
    trainer = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole, expected = attach(trainer), yielded_rows(trainer)
    trainer.train()
    weights = {name: value.clone() for name, value in trainer.model.named_parameters()}

    interrupted = make_trainer(**options, output_dir=str(tmp_path / "parts"))
    attach(interrupted)
    original = interrupted.training_step

    def fail_at_20(*args, **kwargs):
        if interrupted.state.global_step == 20:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    interrupted.training_step = fail_at_20
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = make_trainer(**options, output_dir=str(tmp_path / "parts"))
    callback, rows = attach(resumed), yielded_rows(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert rows == expected[12:]
    assert (callback.router.routes == whole.router.routes).all()
    assert callback.summary()["annotated"] == whole.summary()["annotated"]
    for name, value in resumed.model.named_parameters():
        assert torch.equal(value, weights[name]), name


@dataclass(frozen=True)
class LongerThanTheMedian:
    """A score of the user's own, with something to remember."""

    needs: ClassVar[frozenset[str]] = frozenset()

    median: float | None = None

    def fit(self, traces):
        return LongerThanTheMedian(float(np.median([len(trace) for trace in traces])))

    def __call__(self, traces):
        return np.array([len(trace) - self.median for trace in traces])


class WithANumpyNumber(LongerThanTheMedian):
    def fit(self, traces):
        return WithANumpyNumber(np.float32(np.median([len(trace) for trace in traces])))


def test_a_resumed_run_keeps_what_an_estimator_learnt(make_trainer):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    fitted = attach(trainer, estimator=LongerThanTheMedian())
    trainer.train()
    resumed = make_trainer(max_steps=4)
    callback = attach(resumed, estimator=LongerThanTheMedian())
    resumed.train(resume_from_checkpoint=True)
    assert callback.scorer.estimator.median == fitted.scorer.estimator.median > 0


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_estimator_routes_and_resumes(name, make_trainer):
    trainer = make_trainer(make_pool(16), max_steps=9, save_strategy="steps", save_steps=9)
    first = attach(trainer, estimator=name, annotation_budget=8)
    trainer.train()
    assert first.summary()["num_routings"] == 2 and np.isfinite(first.router.scores).all()
    assert first.ledger.num_bought <= 8
    # A random model writes answers of one length and is unsure of every token.
    assert len(set(first.router.scores)) > 1 or name in ("length", "forking_tokens")
    assert len(first.scorer.probes) == (4 if name == "probe_calibrated" else 0)
    resumed = make_trainer(make_pool(16), max_steps=10)
    second = attach(resumed, estimator=name, annotation_budget=8)
    resumed.train(resume_from_checkpoint=True)
    assert second.scorer.probes == first.scorer.probes
    assert vars(second.scorer.estimator) == vars(first.scorer.estimator)


def test_an_estimator_that_cannot_be_saved_is_named(make_trainer, caplog):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    attach(trainer, estimator=WithANumpyNumber())
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    trainer.train()
    logger.removeHandler(caplog.handler)
    assert "cannot be resumed" in caplog.text
    resumed = make_trainer(max_steps=4)
    attach(resumed, estimator=WithANumpyNumber())
    with pytest.raises(ValueError, match="What WithANumpyNumber learnt.*start a new run"):
        resumed.train(resume_from_checkpoint=True)


def test_resuming_without_state_or_with_another_pool_is_refused(make_trainer, tmp_path):
    plain = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    plain.train()
    trainer = make_trainer()
    attach(trainer)
    with pytest.raises(FileNotFoundError, match="saved without a PivotDensityCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


class TestBadInput:
    """Every refusal names the value and the fix, and leaves the trainer as it was."""

    def refused(self, trainer, error, match, **options):
        before = dict(vars(trainer))
        with pytest.raises(error, match=match):
            PivotDensityCallback(trainer, **options)
        assert vars(trainer) == before

    @pytest.mark.parametrize("budget", [0, -0.1, 1.5, 33])
    def test_budget(self, budget, make_trainer):
        self.refused(make_trainer(), ValueError, "annotation_budget.*(share|label)", annotation_budget=budget)

    def test_no_prompt_column(self, make_trainer):
        dataset = make_pool().rename_column("prompt", "question")
        self.refused(make_trainer(dataset=dataset), ValueError, "no column 'prompt'.*rename_column")

    def test_missing_label_column(self, make_trainer):
        trainer = make_trainer(dataset=make_pool().remove_columns("solution"))
        self.refused(trainer, ValueError, "No label column found.*label_column=.*annotator=")
        self.refused(trainer, ValueError, "`label_column` is 'gold'", label_column="gold")

    def test_ambiguous_label_column(self, make_trainer):
        def reward(completions, solution, level, **kwargs):
            return [0.0] * len(completions)

        dataset = make_pool().add_column("level", ["1"] * 32)
        trainer = make_trainer(dataset=dataset, reward_funcs=reward)
        self.refused(trainer, ValueError, r"several columns, \['solution', 'level'\].*label_column='solution'")
        attach(trainer, label_column="solution").detach()

    def test_a_label_taken_through_kwargs(self, make_trainer):
        def reward(completions, **kwargs):
            return digit_reward(completions, kwargs["solution"])

        def other(completions, **kwargs):
            return [0.0] * len(completions)

        trainer = make_trainer(reward_funcs=[reward, other])
        match = "None of the 2 reward functions names the label column `solution`"
        self.refused(trainer, ValueError, match, label_column="solution")
        trainer = make_trainer(reward_funcs=reward, max_steps=1)
        callback = attach(trainer, label_column="solution")
        trainer.train()
        assert callback.summary()["annotated"] > 0

    def test_empty_pool(self, make_trainer):
        trainer = make_trainer()
        trainer.train_dataset = trainer.train_dataset.select([])
        self.refused(trainer, ValueError, "empty: 0 rows")

    def test_pool_smaller_than_the_probe_set(self, make_trainer):
        config = TriageConfig(probe_size=33)
        self.refused(make_trainer(), ValueError, "`probe_size` is 33", annotation_budget=1.0, config=config)
        self.refused(make_trainer(), ValueError, "`probe_size` is 5", annotation_budget=4, config=TriageConfig(5))

    def test_shares_without_probes_for_a_score_that_learns_from_them(self, make_trainer):
        options = {"estimator": "probe_calibrated", "annotation_budget": 8}
        config = TriageConfig(discard_ratio=0.4)
        self.refused(
            make_trainer(), ValueError, "learns from a probe set.*`discard_ratio=0.4`", config=config, **options
        )

    def test_duplicate_prompts(self, make_trainer):
        pool = make_pool()
        rows = [*pool, pool[3]]
        self.refused(make_trainer(dataset=Dataset.from_list(rows)), ValueError, "Rows 3 and 32 .*drop_duplicates")

    def test_iterable_dataset(self, make_trainer):
        trainer = make_trainer(dataset=make_pool().to_iterable_dataset(), max_steps=2)
        self.refused(trainer, TypeError, "IterableDataset.*streaming=True.*Dataset.from_list")

    def test_estimator(self, make_trainer):
        self.refused(make_trainer(), ValueError, "'pivots', but must be one of", estimator="pivots")
        self.refused(make_trainer(), TypeError, "must be a name or have `needs`", estimator=PivotRoutedSampler)

    def test_not_a_trainer_of_groups(self):
        with pytest.raises(TypeError, match="must be a `trl.GRPOTrainer`"):
            PivotDensityCallback(object())

    def test_nan_scores_come_before_anything_is_bought(self, make_trainer):
        @dataclass
        class Broken:
            needs: ClassVar[frozenset[str]] = frozenset()

            def fit(self, traces):
                return self

            def __call__(self, traces):
                return np.full(len(traces), np.nan)

        trainer = make_trainer()
        callback = attach(trainer, estimator=Broken())
        with pytest.raises(ValueError, match="32 of 32 scores are not finite"):
            trainer.train()
        assert callback.summary()["annotated"] == 0

    def test_models_without_attention_are_named(self, make_trainer):
        from transformers import MambaConfig, MambaForCausalLM

        config = MambaConfig(
            vocab_size=128, hidden_size=16, num_hidden_layers=2, eos_token_id=1, pad_token_id=0, bos_token_id=None
        )
        trainer = make_trainer(model=MambaForCausalLM(config), peft_config=None)
        self.refused(trainer, ValueError, "MambaForCausalLM has no attention module")

    def test_empty_completions_are_uncertain(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        callback = attach(trainer)
        original = trainer._generate_single_turn

        def half_empty(prompt_ids, *rest):
            completions, logprobs = original(prompt_ids, *rest)
            return [[1] if len(ids) % 2 else c for ids, c in zip(prompt_ids, completions)], logprobs

        trainer._generate_single_turn = half_empty
        trainer.train()
        densities = callback.router.densities
        is_empty = np.isnan(densities)
        assert is_empty.any() and not is_empty.all()
        assert (callback.router.scores[is_empty] == callback.router.scores.max()).all()
        assert not (callback.router.routes[is_empty] == Route.DISCARD).any()

    def test_nothing_but_empty_completions(self, make_trainer):
        trainer = make_trainer()
        attach(trainer)
        trainer._generate_single_turn = lambda prompt_ids, *rest: ([[1]] * len(prompt_ids), None)
        with pytest.raises(ValueError, match="All 32 responses are empty.*chat template"):
            trainer.train()


def test_the_sampler_is_ours(make_trainer):
    trainer = make_trainer(max_steps=1)
    callback = attach(trainer)
    trainer.train()
    assert isinstance(callback.sampler, PivotRoutedSampler)
    assert len(callback.sampler) % (8 // 4) == 0
