"""TRL's trainer without what a tiny model on a processor waits for, and one arm of the demo trained with it."""

import time
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from ..callback import PivotDensityCallback
from .arithmetic import make_pool
from .arm import ANNOTATION_BUDGET, MODEL_PATH, Arm, Size


@lru_cache(maxsize=2**16)
def _accuracy(text: str, solution: str) -> float | None:
    return accuracy_reward([[{"role": "assistant", "content": text}]], [solution])[0]


@wraps(accuracy_reward)
def cached_accuracy_reward(completions, solution, **kwargs):
    """
    TRL's `accuracy_reward`; a completion that was verified before is not verified again.

    Args:
        completions (`list[list[dict[str, str]]]`): one message each.
        solution (`list[str]`): their labels.

    Returns:
        `list[float or None]`: 1.0 if right, 0.0 if not, `None` where the label cannot be read.
    """
    return [
        _accuracy(completion[0]["content"], label) for completion, label in zip(completions, solution, strict=True)
    ]


class QuickEvaluationTrainer(GRPOTrainer):
    """
    `GRPOTrainer` whose evaluation answers prompts of like length together and leaves out the loss, which says nothing
    of an evaluation and is logged as 0. Its random numbers are its own: the same in every arm, and none taken from
    training. It takes the arguments of `GRPOTrainer`, and an `eval_dataset` that has a length.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate under the trainer's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Answer and reward, nothing else."""
        self._prepare_inputs(inputs)
        return torch.zeros((), device=self.args.device), None, None

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        # A batch is generated until its longest answer ends.
        order = np.argsort([-len(str(prompt)) for prompt in eval_dataset["prompt"]], kind="stable")
        return [int(row) for row in order for _ in range(self.num_generations_eval or 1)]


def generate_merged(model: Any) -> None:
    """
    Let `generate` of a `PeftModel` run on weights into which the adapters are merged: token by token, the small
    products of LoRA take a quarter of the time. The weights are put back as they were, bit for bit.

    Args:
        model ([`~peft.PeftModel`]): a small policy in full precision; its `generate` is replaced.
    """
    generate = model.generate
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = [layer.get_base_layer().weight.data for layer in layers]

    def generate_and_restore(*args: Any, **kwargs: Any) -> Any:
        frozen = [weight.clone() for weight in weights]
        model.merge_adapter()
        try:
            return generate(*args, **kwargs)
        finally:
            model.unmerge_adapter()
            for weight, original in zip(weights, frozen, strict=True):
                weight.copy_(original)

    model.generate = generate_and_restore


class _StepCallback(TrainerCallback):
    """Tells of every step."""

    def __init__(self, tell: Callable[[], None]):
        self._tell = tell

    def on_step_end(self, args, state, control, **kwargs):
        self._tell()


def make_trainer(
    pool: Dataset, output_dir: Path, seed: int, size: Size, held_out: Dataset | None = None
) -> GRPOTrainer:
    """The ordinary script that both arms share: TRL's trainer and reward, and LoRA. Evaluates where `held_out`."""
    args = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=size.max_steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=80,
        learning_rate=5e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        beta=0.0,
        temperature=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        eval_strategy="no" if held_out is None else "steps",
        eval_on_start=held_out is not None,
        eval_steps=size.eval_every,
        num_generations_eval=size.eval_samples,
        per_device_eval_batch_size=32 * size.eval_samples,
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    trainer = QuickEvaluationTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
        reward_funcs=cached_accuracy_reward,
        args=args,
        train_dataset=pool,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    generate_merged(trainer.model)
    return trainer


def run_arm(name: str, output_dir: Path, seed: int, size: Size, tell_step: Callable[[], None]) -> Arm:
    """Train `"full supervision"` or `"PivotTrace"` on one thread; the function is called after every step."""
    start = time.perf_counter()
    # The other arm has the other core: threads of every small operation would wait for each other.
    torch.set_num_threads(1)
    pool = make_pool(size.pool, seed)
    held_out = make_pool(size.held_out, seed + 10_000, exclude=pool)
    trainer = make_trainer(pool, output_dir, seed, size, held_out)
    arm = Arm(name, labels=len(pool))
    callback = None
    if name == "PivotTrace":
        callback = PivotDensityCallback(trainer, annotation_budget=ANNOTATION_BUDGET)
        trainer.add_callback(callback)
    trainer.add_callback(_StepCallback(tell_step))
    trainer.train()
    history = trainer.state.log_history
    # Not every version of transformers evaluates after the last step.
    if not any("eval_reward" in entry and entry["step"] == trainer.state.global_step for entry in history):
        trainer.evaluate()
    scoring_tokens = 0
    if callback is not None:
        arm.labels, scoring_tokens = callback.summary()["annotated"], callback.num_scoring_tokens
        callback.detach()
    for entry in history:
        if "eval_reward" in entry:
            arm.steps.append(int(entry["step"]))
            arm.accuracies.append(entry["eval_reward"])
            arm.rollout_tokens.append(int(entry["eval_num_tokens"]) + scoring_tokens)
    arm.seconds = time.perf_counter() - start
    return arm
