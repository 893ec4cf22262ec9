"""The trainer of demo and reproduction: quicker than TRL's, with the same results."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl import PivotDensityCallback, TriageConfig
from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.demo.rewards import cached_accuracy_reward
from pivottrace_trl.demo.trainer import QuickTrainer, leave_out_silent, split_by_length
from pivottrace_trl.training.rewards import ROW_COLUMN
from pivottrace_trl.training.training_pass import NOT_TRACED


def test_silent_rollouts_add_nothing(tmp_path):
    """
    Two steps with and without the shortcut, by plain gradient descent: the weights show the gradients. Adam would turn
    the rounding of those that are next to zero into steps.
    """
    weights, tokens = {}, {}
    for kind in (GRPOTrainer, QuickTrainer):
        args = GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=32, num_generations=4, max_completion_length=80,
            max_steps=2, learning_rate=1.0, optim="sgd", gradient_checkpointing=False, use_cpu=True, bf16=False,
            report_to="none", disable_tqdm=True, save_strategy="no", seed=3,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
            reward_funcs=cached_accuracy_reward, args=args, train_dataset=make_pool(16, seed=1),
            processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )  # fmt: skip
        seen = tokens[kind] = []
        run_policy = trainer._get_per_token_logps_and_entropies

        def count(model, input_ids, attention_mask, *args, run_policy=run_policy, seen=seen, **kwargs):
            seen.append((attention_mask.numel(), int(attention_mask.sum())))
            return run_policy(model, input_ids, attention_mask, *args, **kwargs)

        trainer._get_per_token_logps_and_entropies = count
        trainer.train()
        silent = [entry["frac_reward_zero_std"] for entry in trainer.state.log_history if "reward" in entry]
        weights[kind] = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
        assert max(weight.abs().max() for weight in weights[kind]) > 0.01
    assert 0 < silent[0] < 1
    for expected, found in zip(*weights.values(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    # Two steps each; places of the forward passes, and tokens in them.
    (all_places, all_tokens), (places, num_tokens) = (np.sum(tokens[kind], axis=0) for kind in tokens)
    assert len(tokens[GRPOTrainer]) == 2 and len(tokens[QuickTrainer]) == 4
    assert num_tokens < 0.9 * all_tokens and places < 0.7 * all_places


def test_what_is_left_of_a_batch():
    batch = {
        "prompt_ids": torch.tensor([[0, 5], [0, 6], [7, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[1, 0, 0], [1, 2, 0], [1, 2, 3]]),
        "completion_mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        "advantages": torch.tensor([0.0, -1.0, 0.0]),
        "num_items_in_batch": torch.tensor(6),
    }
    left = leave_out_silent(batch)
    assert left["prompt_ids"].tolist() == [[0, 6]] and left["completion_ids"].tolist() == [[1, 2, 0]]
    # What is to be traced stays, and so does one row of a batch without any gradient.
    left = leave_out_silent(batch | {ROW_COLUMN: torch.tensor([4, NOT_TRACED, NOT_TRACED])})
    assert left[ROW_COLUMN].tolist() == [4, NOT_TRACED] and left["num_items_in_batch"] == 6
    assert len(leave_out_silent(batch | {"advantages": torch.zeros(3)})["prompt_ids"]) == 1
    shorter, longer = split_by_length(batch)
    assert shorter["prompt_ids"].tolist() == [[5], [6]] and shorter["completion_ids"].tolist() == [[1, 0], [1, 2]]
    assert shorter["completion_mask"].tolist() == [[1, 0], [1, 1]] and shorter["advantages"].tolist() == [0, -1]
    assert longer["prompt_ids"].tolist() == [[7, 7]] and longer["completion_ids"].tolist() == [[1, 2, 3]]
    assert shorter["num_items_in_batch"] == longer["num_items_in_batch"] == 6
    assert len(split_by_length(longer)) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"beta": 0.1}, {"loss_type": "bnpo"}, {"use_adaptive_entropy": True}, {"num_iterations": 2},
        {"steps_per_generation": 2},
    ],
)  # fmt: skip
def test_another_loss_sees_every_rollout(tmp_path, setting):
    args = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=4,
        max_steps=1, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", **setting,
    )  # fmt: skip
    trainer = QuickTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
        reward_funcs=lambda completions, **kwargs: [1.0] * len(completions), args=args,
        train_dataset=make_pool(4, seed=1), processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
    )  # fmt: skip
    compute_loss, rows = trainer.compute_loss, []
    trainer.compute_loss = lambda model, inputs, **kwargs: (
        rows.append(len(inputs["advantages"])) or compute_loss(model, inputs, **kwargs)
    )
    trainer.train()
    assert rows == [4]


def test_several_processes_make_as_many_passes(tmp_path, monkeypatch):
    """A process whose batch has no gradient makes one pass, and the others would wait for its second."""
    args = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, use_cpu=True, bf16=False,
        report_to="none",
    )  # fmt: skip
    trainer = QuickTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
        reward_funcs=cached_accuracy_reward, args=args, train_dataset=make_pool(4, seed=1),
        processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
    )  # fmt: skip
    assert trainer._can_be_shortened()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    assert not trainer._can_be_shortened()


def test_evaluation_gives_what_trl_gives(tmp_path):
    pool, held_out = make_pool(8, seed=0), make_pool(12, seed=1)
    seen = {}
    for kind in (GRPOTrainer, QuickTrainer):
        args = GRPOConfig(
            output_dir=str(tmp_path), per_device_eval_batch_size=8, num_generations=2, num_generations_eval=2,
            per_device_train_batch_size=2, max_completion_length=80, use_cpu=True, bf16=False, report_to="none",
            # The likeliest token only, so that both give the same answers.
            generation_kwargs={"do_sample": False}, gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        answered = []

        def reward(prompts, completions, solution, answered=answered, **kwargs):
            answered.extend((p[0]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True))
            return accuracy_reward(completions, solution)

        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
            reward_funcs=reward, args=args, train_dataset=pool, eval_dataset=held_out,
            processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        )  # fmt: skip
        state = torch.get_rng_state()
        metrics = trainer.evaluate()
        seen[kind] = metrics["eval_reward"], sorted(answered)
    assert seen[GRPOTrainer] == seen[QuickTrainer]
    # None of the random numbers of training is taken, and like lengths are answered together.
    assert torch.equal(torch.get_rng_state(), state)
    lengths = [len(problem) for problem, _ in answered]
    assert lengths == sorted(lengths, reverse=True)


def test_what_is_traced_is_what_trl_would_show(tmp_path):
    """Every group of a step is traced once, silent ones too, and the traces are those of the whole padded batch."""
    traced = {}
    for kind in (GRPOTrainer, QuickTrainer):
        args = GRPOConfig(
            output_dir=str(tmp_path / kind.__name__), per_device_train_batch_size=32, num_generations=4, max_steps=1,
            max_completion_length=80, learning_rate=5e-4, gradient_checkpointing=False, use_cpu=True, bf16=False,
            report_to="none", disable_tqdm=True, save_strategy="no", seed=3,
        )  # fmt: skip
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
            reward_funcs=cached_accuracy_reward, args=args, train_dataset=make_pool(16, seed=1),
            processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        )  # fmt: skip
        callback = PivotDensityCallback(trainer, 1.0, config=TriageConfig(discard_ratio=0.0))
        trainer.add_callback(callback)
        seen = traced[kind] = {}
        callback._attachment._training_pass._on_traces = lambda rows, traces, seen=seen: seen.update(
            zip(rows, traces, strict=True)
        )
        torch.manual_seed(0)
        trainer.train()
        callback.detach()
    expected, found = traced.values()
    assert expected.keys() == found.keys() and len(found) == 8
    for row, trace in found.items():
        for name in ("entropy", "log_prob", "long_range_mass"):
            assert np.allclose(getattr(trace, name), getattr(expected[row], name), atol=1e-5), name
