"""Losses of GRPO, RLOO, reward models, async rewards, evaluation: what is supported, and what is refused."""

import asyncio
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, ProcessorMixin
from trl import GRPOTrainer, RLOOTrainer

from pivottrace_trl import PivotDensityCallback, TriageConfig
from pivottrace_trl.training.batch_labels import LabelRouter
from pivottrace_trl.training.rewards import ROW_COLUMN, AsyncRoutedReward, RoutedReward

from ..conftest import FormatBy, attach, digit_reward, make_model, make_pool


def both(function):
    return pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer], ids=["grpo", "rloo"])(function)


def marked_pool(num_prompts=8):
    """A pool whose labels can be told from everything else."""
    pool = make_pool(num_prompts).remove_columns("solution")
    return pool.add_column("solution", [f"label-{row:02d}-{row % 10}" for row in range(num_prompts)])


class Shown:
    """What reward functions were passed: every label that shows anywhere in it."""

    def __init__(self, pool):
        self.labels = set(pool["solution"])
        self.seen = set()

    def note(self, *passed):
        self.seen |= {label for label in self.labels if label in repr(passed)}

    def verifier(self, prompts, completions, solution, trainer_state, **kwargs):
        self.note(prompts, completions, solution, kwargs)
        return digit_reward(completions, solution)

    def format_reward(self, completions, trainer_state, **kwargs):
        self.note(completions, kwargs)
        return [len(completion[0]["content"]) / 12 for completion in completions]

    def check(self, callback):
        bought = {callback.ledger.label(identity)["solution"] for identity in callback.ledger.bought_ids}
        assert self.seen and self.seen <= bought < self.labels


LOSSES = {
    "grpo": {"beta": 0.04, "num_iterations": 2},
    "dr_grpo": {"beta": 0.04, "scale_rewards": "none", "peft_config": None},
    "dapo": {"top_entropy_quantile": 0.2, "gradient_checkpointing": True},
    "bnpo": {"scale_rewards": "batch", "mask_truncated_completions": True, "max_completion_length": 60},
    "cispo": {"epsilon_high": 5.0, "steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "sapo": {"off_policy_mask_threshold": 0.5},
    "luspo": {"importance_sampling_level": "sequence", "entropy_coef": 0.01, "delta": 4.0},
    "vespo": {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.2]},
    "rloo": {"kind": RLOOTrainer, "normalize_advantages": True, "num_iterations": 2},
    "rloo-full": {"kind": RLOOTrainer, "reward_clip_range": (0.0, 0.5), "beta": 0.1, "peft_config": None},
}


@pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=() if name in ("grpo", "rloo") else pytest.mark.slow) for name in LOSSES]
)
def test_every_loss_routes_traces_and_sees_no_label_that_was_not_bought(loss, make_trainer, tmp_path, caplog):
    options = dict(LOSSES[loss])
    if "kind" not in options:
        options["loss_type"] = loss
    pool, model = marked_pool(), make_model("llama")
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # whence a reference model is loaded
    shown = Shown(pool)
    rewards = [shown.verifier, shown.format_reward]
    trainer = make_trainer(pool, reward_funcs=rewards, model=model, num_train_epochs=2, **options)
    assert (trainer.ref_model is not None) == (options.get("peft_config", True) is None)
    callback = attach(trainer, label_column="solution")
    traced, generated = [], []
    tracer, generate = callback._attachment._training_pass, trainer._generate_and_score_completions
    take = tracer._on_traces

    def note_traces(rows, traces):
        epoch = callback.summary()["num_routings"]
        traced.extend((epoch, row, len(trace) > 0) for row, trace in zip(rows, traces, strict=True))
        take(rows, traces)

    def note_groups(inputs):
        generated.extend((callback.summary()["num_routings"], example[ROW_COLUMN]) for example in inputs[::4])
        return generate(inputs)

    tracer._on_traces, trainer._generate_and_score_completions = note_traces, note_groups
    logging.getLogger("trl").addHandler(caplog.handler)
    trainer.train()
    logging.getLogger("trl").removeHandler(caplog.handler)
    # Some groups have neither a label nor a majority; TRL is not to complain of what was withheld on purpose.
    assert any(entry.get("pivottrace/withheld_ratio") for entry in trainer.state.log_history)
    assert "All reward functions returned None" not in caplog.text
    shown.check(callback)
    assert trainer.state.global_step == trainer.state.max_steps
    assert callback.summary()["num_routings"] == 2
    # Every group is traced once, in the pass of its loss, and re-routing works with those scores.
    assert sorted((epoch, row) for epoch, row, _ in traced) == sorted(generated)
    tables = [
        pq.read_table(tmp_path / "run" / "_pivottrace" / f"routes-epoch-{epoch:03d}.parquet").to_pydict()
        for epoch in range(2)
    ]
    changed = np.flatnonzero(np.array(tables[0]["score"]) != np.array(tables[1]["score"]))
    assert set(changed) == {row for epoch, row, is_scored in traced if epoch == 1 and is_scored} != set()


@pytest.mark.slow
def test_the_router_of_experts_may_have_a_loss_of_its_own(make_trainer):
    trainer = make_trainer(make_pool(8), model=make_model("mixtral"), max_steps=2, router_aux_loss_coef=0.01)
    callback = attach(trainer)
    trainer.train()
    assert "aux_loss" in set().union(*trainer.state.log_history)
    assert np.isfinite(callback.router.densities).any()


def test_liger_without_its_package_is_refused_by_transformers(make_trainer):
    # With it, trl 1.16 leaves the head alone, so that the loss makes the same pass as ever.
    with pytest.raises(ImportError, match="liger"):  # when the trainer is made or begins, depending on the version
        trainer = make_trainer(max_steps=1, use_liger_kernel=True)
        attach(trainer)
        trainer.train()


def test_a_resumed_rloo_run_goes_on_with_the_same_routes(make_trainer, tmp_path):
    options = {"kind": RLOOTrainer, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    pool, rows, weights = make_pool(8), [], []
    for is_resumed in (False, True):
        trainer = make_trainer(pool, **options)
        callback, batches = attach(trainer), []
        generate = trainer._generate_and_score_completions

        def spy(inputs, batches=batches, generate=generate):
            batches.append([example[ROW_COLUMN] for example in inputs])
            return generate(inputs)

        trainer._generate_and_score_completions = spy
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3") if is_resumed else None)
        rows.append(batches)
        weights.append([parameter.clone() for parameter in trainer.model.parameters()])
        assert callback.summary()["annotated"] == 4
    assert rows[1] == rows[0][3:] != []
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


@both
def test_detach_puts_the_trainer_back(kind, make_trainer):
    trainer = make_trainer(make_pool(8), kind=kind)
    logger = logging.getLogger(kind.__module__)
    before, filters = dict(vars(trainer)), list(logger.filters)
    callback = attach(trainer)
    assert vars(trainer) != before and list(logger.filters) != filters
    callback.detach()
    assert vars(trainer) == before and list(logger.filters) == filters


@both
def test_only_the_pool_is_generated_for_with_vllm(kind, make_trainer):
    """Both trainers tell vLLM how many of the prompts that follow each other are the same one."""
    trainer = make_trainer(make_pool(8), kind=kind)
    callback, asked = attach(trainer), []

    def generate(prompts, images, num_generations, profiler):
        asked.append((len(prompts), num_generations))
        return prompts, [[5, 1]] * len(prompts), [[[0.0], [0.0]]] * len(prompts), None

    trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    trainer.vllm_generation = SimpleNamespace(generate=generate)
    callback._make_sampler()
    assert sum(size for size, _ in asked) == 8 and {number for _, number in asked} == {1}
    assert trainer.num_generations_eval == 4


class TestWithheldGroups:
    """A group without a label to trust moves nothing, whoever else has something to say of it."""

    @pytest.fixture
    def reward_model(self, tokenizer):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_labels=1, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForSequenceClassification(config)
        model.config._name_or_path = "judge"
        model.texts = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: module.texts.extend(tokenizer.batch_decode(kwargs["input_ids"])),
            with_kwargs=True,
        )
        return model

    @both
    @pytest.mark.parametrize("has_labels", [False, True])
    def test_no_gradient_without_a_label(self, kind, has_labels, make_trainer, reward_model, tokenizer):
        pool = marked_pool()
        shown = Shown(pool)
        trainer = make_trainer(
            pool if has_labels else pool.map(lambda row: {"solution": None}, features=pool.features),
            kind=kind,
            # TRL calls them in this order, the reward model before anything has voted.
            reward_funcs=[reward_model, shown.format_reward, shown.verifier],
            inputs={"reward_processing_classes": [tokenizer, None, None]},
            beta=0.0,
            max_steps=3,
        )
        weights = [parameter.clone() for parameter in trainer.model.parameters()]
        attach(
            trainer,
            label_column="solution",
            annotator=None if has_labels else "queue",
            annotation_budget=1.0,
            config=TriageConfig(tau_high=1.0, tau_low=0.5),
            answer_format=FormatBy(lambda text: None),  # no vote
        )
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        is_still = all(torch.equal(*pair) for pair in zip(weights, trainer.model.parameters(), strict=True))
        assert reward_model.texts and not any("label-" in text for text in reward_model.texts)
        if has_labels:
            assert not is_still
            assert any(entry["rewards/judge/mean"] is not None for entry in steps)
        else:
            assert is_still and not shown.seen
            assert all(entry["grad_norm"] == 0 and entry["rewards/judge/mean"] is None for entry in steps)
            assert all(entry["pivottrace/withheld_ratio"] == 1 for entry in steps)

    def test_a_reward_model_alone_cannot_verify(self, make_trainer, reward_model, tokenizer):
        inputs = {"reward_processing_classes": tokenizer}
        trainer = make_trainer(reward_funcs=reward_model, inputs=inputs)
        with pytest.raises(ValueError, match="None of the 1 reward functions names the label column `solution`"):
            attach(trainer, label_column="solution")


class Judge:
    """A reward function that notes the labels that it is shown of the pool and of what."""

    __name__ = "Judge"

    def __init__(self):
        self.threads, self.probed, self.trained = set(), [], []

    def judge(self, completions, solution, log_metric, **kwargs):
        self.threads.add(threading.current_thread())
        # Probes are verified without the trainer's log.
        shown = self.trained if hasattr(log_metric, "__self__") else self.probed
        shown.append(list(solution))
        return digit_reward(completions, solution)

    def __call__(self, completions, solution, **kwargs):
        return self.judge(completions, solution, **kwargs)


class AsyncJudge(Judge):
    """No function, but an object whose `__call__` is asynchronous."""

    __name__ = "AsyncJudge"

    async def __call__(self, completions, solution, **kwargs):
        await asyncio.sleep(0)
        return self.judge(completions, solution, **kwargs)


class TestAsyncRewards:
    @pytest.mark.parametrize(
        ("kind", "verifier", "other"),
        [(RLOOTrainer, Judge, AsyncJudge), (GRPOTrainer, AsyncJudge, AsyncJudge)],
        ids=["rloo-one", "grpo-all"],
    )
    def test_they_share_one_vote(self, kind, verifier, other, make_trainer, monkeypatch):
        verifier, other, seen, voters = verifier(), other(), [], []

        async def no_function_of_the_label(completions, scale, **kwargs):
            seen.append(len(completions))
            return [scale] * len(completions)

        decide = LabelRouter._label
        monkeypatch.setattr(
            LabelRouter, "_label", lambda *args: voters.append(threading.current_thread()) or decide(*args)
        )
        functions = [verifier, other, functools.partial(no_function_of_the_label, scale=0.5)]
        trainer = make_trainer(make_pool(8), kind=kind, reward_funcs=functions, num_train_epochs=2)
        callback = attach(trainer, label_column="solution")
        trainer.train()
        assert sum(map(len, verifier.probed)) >= callback.summary()["probes"] > 0 and other.probed == []
        assert verifier.trained == other.trained != []
        assert seen == [len(labels) for labels in other.trained]
        # On the loop that the trainer made, also for probes; the votes on this thread, once a batch.
        for judge in (verifier, other):
            is_async = isinstance(judge, AsyncJudge)
            assert judge.threads == {trainer.async_loop_thread if is_async else threading.main_thread()}
        assert set(voters) == {threading.main_thread()} and len(voters) <= 8 * 2
        evidence = callback.router.evidence
        assert np.isfinite(evidence.agreement).all() and np.isfinite(evidence.pass_rate).any()
        assert "pivottrace/right_by_label" in set().union(*trainer.state.log_history)

    def test_evaluation_is_passed_through(self, make_trainer):
        judge = AsyncJudge()
        trainer = make_trainer(reward_funcs=judge)
        trainer.eval_dataset = held_out = make_pool(34).select(range(32, 34))
        callback = attach(trainer)
        metrics = trainer.evaluate()
        assert "eval_rewards/AsyncJudge/mean" in metrics
        assert {label for labels in judge.probed + judge.trained for label in labels} == set(held_out["solution"])
        assert np.isnan(callback.router.evidence.agreement).all()

    def test_a_wrong_number_of_rewards_is_named(self, make_trainer):
        async def broken(completions, solution, **kwargs):
            return [1.0]

        trainer = make_trainer(make_pool(8), reward_funcs=broken, max_steps=1)
        attach(trainer, config=TriageConfig(discard_ratio=0.0), annotation_budget=1.0)
        with pytest.raises(ValueError, match="returned 1 rewards for"):
            trainer.train()


@pytest.mark.slow
def test_two_processes_of_rloo_withhold_the_same_groups(tokenizer_path, tmp_path):
    """With a reward model and an asynchronous verifier; one group in three straddles the processes."""
    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("rloo_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    outcome = subprocess.run(
        [*launch, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["routes"] == second["routes"] and first["annotated"] == second["annotated"] == 6
    groups = []
    for batch, rest in zip(first["batches"], second["batches"], strict=True):
        assert batch["is_withheld"] == rest["is_withheld"]
        rows = batch["rows"] + rest["rows"]
        for start in range(0, len(rows), 4):
            assert len(set(rows[start : start + 4])) == 1
            # All four or none, and the reward model where the verifier is.
            (is_withheld,) = {flag for flags in batch["is_withheld"][start : start + 4] for flag in flags}
            groups.append(is_withheld)
    assert len(groups) == 24 and set(groups) == {True, False}


class TestEvaluation:
    @both
    def test_it_is_that_of_a_plain_trainer(self, kind, make_trainer):
        """Before the first step the policy is the same with and without the callback, and so is the evaluation."""
        logs, shown = [], []

        def reward(completions, solution, **kwargs):
            if ROW_COLUMN not in kwargs and any(label.startswith("eval") for label in solution):
                shown.append((list(solution), set(kwargs)))
            return digit_reward(completions, solution)

        held_out = make_pool(12).select(range(8, 12)).map(lambda row: {"solution": "eval" + row["solution"]})
        for is_attached in (False, True):
            options = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "max_steps": 4}
            inputs = {"eval_dataset": held_out}
            trainer = make_trainer(make_pool(8), reward_funcs=reward, kind=kind, inputs=inputs, **options)
            callback = attach(trainer) if is_attached else None
            shown.clear()
            trainer.train()
            evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
            assert len(evaluations) == 3
            assert len(shown) == 6 and {label for labels, _ in shown for label in labels} == set(held_out["solution"])
            assert {frozenset(names) for _, names in shown} == {
                frozenset({"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric"})
            }
            assert not [name for entry in evaluations for name in entry if "pivottrace" in name]
            timing = ("runtime", "per_second")
            logs.append({name: value for name, value in evaluations[0].items() if not name.endswith(timing)})
        assert logs[0] == logs[1] and "eval_loss" in logs[0]
        # Votes and labels are of the pool alone.
        assert callback.router.evidence.agreement.shape == (8,)
        bought = [callback.ledger.label(identity)["solution"] for identity in callback.ledger.bought_ids]
        assert bought and not [label for label in bought if label.startswith("eval")]


class TestRefusals:
    """Each says what it is, why, and what to do instead; the trainer stays as it was."""

    def refused(self, trainer, *words):
        before = dict(vars(trainer))
        with pytest.raises(NotImplementedError) as error:
            PivotDensityCallback(trainer)
        assert all(word in str(error.value) for word in words), str(error.value)
        assert vars(trainer) == before

    # `setattr` fails where TRL no longer has the attribute.
    def test_tools(self, make_trainer, monkeypatch):
        trainer = make_trainer()
        monkeypatch.setattr(trainer, "tools", [len])
        self.refused(trainer, "does not support `tools` (here 1)", "single responses", "pivottrace triage")

    def test_environments(self, make_trainer, monkeypatch):
        trainer = make_trainer()
        # TRL counts the methods of environments among the tools.
        monkeypatch.setattr(trainer, "environment_factories", {None: object})
        monkeypatch.setattr(trainer, "tools", [len])
        self.refused(trainer, "does not support `environment_factory`", "turns", "`train_dataset`")

    def test_rollout_function(self, make_trainer):
        trainer = make_trainer(inputs={"rollout_func": lambda prompts, trainer: {}})
        self.refused(trainer, "does not support `rollout_func`", "which your function replaces", "pivottrace triage")

    @both
    def test_vision_language_models(self, kind, make_trainer, monkeypatch):
        trainer = make_trainer(kind=kind)
        monkeypatch.setattr(trainer, "processing_class", ProcessorMixin())
        self.refused(trainer, "does not support vision-language models", "without images", "processing_class")

    @both
    def test_processes_and_arguments(self, kind, make_trainer, monkeypatch):
        trainer = make_trainer(kind=kind, remove_unused_columns=True)
        self.refused(trainer, "`remove_unused_columns=True`", "Leave it at its default")
        trainer = make_trainer(kind=kind)
        monkeypatch.setattr(trainer.args, "_n_gpu", 2)
        self.refused(trainer, "several GPUs in one process (here 2)", "CUDA_VISIBLE_DEVICES")

    def test_other_trainers(self):
        from trl import SFTTrainer

        with pytest.raises(
            TypeError, match="is a `SFTTrainer`, but must be a `trl.GRPOTrainer` or a `trl.RLOOTrainer`"
        ):
            PivotDensityCallback(object.__new__(SFTTrainer))

    @pytest.mark.parametrize("base", [object, GRPOTrainer, RLOOTrainer])
    def test_unsloth(self, base):
        """
        As `unsloth/models/rl.py` (2026.10.9) generates it: a rewritten copy of the class or, where its source cannot
        be read, a subclass; users may derive from either.
        """
        rewritten = type("_UnslothGRPOTrainer", (base,), {})
        unsloth = type("UnslothGRPOTrainer", (rewritten,), {})
        for kind in (unsloth, type("MyTrainer", (unsloth,), {})):
            with pytest.raises(NotImplementedError, match="Unsloth put in the place.*`pivottrace triage`"):
                PivotDensityCallback(object.__new__(kind))


def test_both_kinds_of_routed_reward_are_what_trl_takes_them_for():
    from trl.trainer.utils import is_async_callable

    assert is_async_callable(AsyncRoutedReward(None, None, True)) and not is_async_callable(
        RoutedReward(None, None, True)
    )
