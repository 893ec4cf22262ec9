"""The trainer of demo and reproduction: quicker than TRL's, with the same results."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.demo.trainer import QuickEvaluationTrainer, cached_accuracy_reward, generate_merged


@pytest.fixture
def policy():
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return model


def test_completions_are_verified_as_by_trl():
    texts = [r"\boxed{4}", "4", "", r"\boxed{5}", r"\boxed{\frac{8}{2}}", r"\boxed{4", r"\boxed{4}\boxed{5}", "\ud800"]
    completions = [[{"role": "assistant", "content": text}] for text in texts * 2]
    for solution in ("4", "$4$", "", "no number"):
        solutions = [solution] * len(completions)
        assert cached_accuracy_reward(completions, solutions) == accuracy_reward(completions, solutions)


def test_a_completion_is_verified_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "pivottrace_trl.demo.trainer.accuracy_reward", lambda texts, labels: calls.append(texts) or [1.0]
    )
    completions = [[{"role": "assistant", "content": f"seen {n % 2} times"}] for n in range(6)]
    assert cached_accuracy_reward(completions, ["1"] * 6) == [1.0] * 6 and len(calls) == 2


def test_merged_adapters_answer_alike_and_leave_no_trace(policy):
    batch = AutoTokenizer.from_pretrained(MODEL_PATH)("<user>17+5=?<assistant>", return_tensors="pt")
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}

    def logits():
        result = policy.generate(
            **batch, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(result.logits)

    expected = logits()
    generate_merged(policy)
    assert torch.allclose(logits(), expected, atol=1e-4)
    with pytest.raises(ValueError, match="max_new_tokens"):
        policy.generate(**batch, max_new_tokens=-1)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_evaluation_gives_what_trl_gives(tmp_path):
    pool, held_out = make_pool(8, seed=0), make_pool(12, seed=1)
    seen = {}
    for kind in (GRPOTrainer, QuickEvaluationTrainer):
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
    assert seen[GRPOTrainer] == seen[QuickEvaluationTrainer]
    # None of the random numbers of training is taken, and like lengths are answered together.
    assert torch.equal(torch.get_rng_state(), state)
    lengths = [len(problem) for problem, _ in answered]
    assert lengths == sorted(lengths, reverse=True)
