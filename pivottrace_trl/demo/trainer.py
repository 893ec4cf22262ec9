"""TRL's trainer with shortcuts for a tiny model on a CPU, and one arm of the demo trained with it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ..callback import PivotDensityCallback
from ..report import RunRecorder
from ..training.rewards import ROW_COLUMN
from ..training.training_pass import NOT_TRACED
from .arithmetic import make_pool
from .arm import ANNOTATION_BUDGET, MODEL_PATH, Arm, Size
from .generation import generate_quickly
from .rewards import cached_accuracy_reward


# Settings for which rollouts without advantage add nothing to the loss, and the loss is a sum over parts of a batch.
_SIMPLE_LOSS = {
    "beta": 0.0,
    "num_iterations": 1,
    "loss_type": "dapo",
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "use_vllm": False,
}


class QuickTrainer(GRPOTrainer):
    """
    A `GRPOTrainer` that trains only on rollouts with a gradient, and evaluates without a loss.

    A rollout whose advantage is zero adds nothing to the gradient, and is left out of the forward and backward pass.
    The others are processed in two halves, so that short ones are not padded to the longest. The loss does not change,
    as it is divided by the tokens of all rollouts. With another loss, with rollouts that serve several steps, or with
    several processes, TRL's own step is used. The logged entropy and clip ratios are means over the halves, and
    `step_time` is that of one half, without generation.

    Evaluation answers prompts of similar length together, and leaves out the loss, which is logged as 0. Its random
    numbers are the same in every arm, and separate from those of training. The trainer takes the arguments of
    `GRPOTrainer`, and an `eval_dataset` with a length.
    """

    def training_step(self, model, inputs, num_items_in_batch=None):
        """TRL's step in two passes, each over rollouts of similar length."""
        if not self._can_be_shortened():
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()  # after an evaluation, as TRL checks the model's mode when it generates rollouts
        parts = split_by_length(leave_out_silent(self._prepare_inputs(inputs)))
        losses = []
        for part in parts:
            losses.append(super().training_step(model, part, num_items_in_batch))
            self._step -= 1
        self._step += 1
        return torch.stack(losses).sum()

    def _can_be_shortened(self) -> bool:
        """Whether the loss is a plain sum without further terms, and there is only one process."""
        args: Any = self.args
        is_simple = all(getattr(args, name) == value for name, value in _SIMPLE_LOSS.items())
        # Otherwise TRL stores the log-probabilities of the older weights that sampled the tokens.
        is_fresh = args.gradient_accumulation_steps % args.steps_per_generation == 0
        return is_simple and is_fresh and self.accelerator.num_processes == 1

    def _prepare_inputs(self, generation_batch):
        # The parts of a batch come here again.
        return generation_batch if "advantages" in generation_batch else super()._prepare_inputs(generation_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate under the trainer's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Generate and reward completions, without a loss."""
        self._prepare_inputs(inputs)
        return torch.zeros((), device=self.args.device), None, None

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        # Generation of a batch takes until its longest answer ends, so answers of similar length belong together.
        order = np.argsort([-len(str(prompt)) for prompt in eval_dataset["prompt"]], kind="stable")
        return [int(row) for row in order for _ in range(self.num_generations_eval or 1)]


def leave_out_silent(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Remove the rows of a TRL batch whose advantage is zero, except those that are to be traced. At least one row is
    kept, so that there is something to train on.
    """
    is_kept = inputs["advantages"] != 0
    if ROW_COLUMN in inputs:
        is_kept = is_kept | (inputs[ROW_COLUMN] != NOT_TRACED)
    if not is_kept.any():
        is_kept[0] = True
    return _select(inputs, is_kept)


def split_by_length(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Split a batch into its shorter and its longer half, each without columns that are padding in all of its rows."""
    order = (inputs["prompt_mask"].sum(dim=1) + inputs["completion_mask"].sum(dim=1)).argsort()
    parts = [_select(inputs, rows) for rows in order.tensor_split(2) if len(rows)]
    for part in parts:
        for name in ("prompt", "completion"):
            is_read = part[f"{name}_mask"].any(dim=0)
            part[f"{name}_ids"], part[f"{name}_mask"] = (
                part[f"{name}_ids"][:, is_read],
                part[f"{name}_mask"][:, is_read],
            )
    return parts


def _select(inputs: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    # The number of tokens of the whole batch, by which the loss is divided, is a scalar and stays.
    return {name: value[rows] if value.ndim else value for name, value in inputs.items()}


class _StepCallback(TrainerCallback):
    """Calls a function after every step."""

    def __init__(self, tell: Callable[[], None]):
        self._tell = tell

    def on_step_end(self, args, state, control, **kwargs):
        self._tell()


def make_trainer(
    pool: Dataset, output_dir: Path, seed: int, size: Size, held_out: Dataset | None = None
) -> GRPOTrainer:
    """Make the trainer that both arms share, with TRL's reward and LoRA. It evaluates if `held_out` is given."""
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
    trainer = QuickTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
        reward_funcs=cached_accuracy_reward,
        args=args,
        train_dataset=pool,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    generate_quickly(trainer.model)
    return trainer


def run_arm(name: str, output_dir: Path, seed: int, size: Size, tell_step: Callable[[], None]) -> Arm:
    """Train `"full supervision"` or `"PivotTrace"` on one thread. `tell_step` is called after every step."""
    start = time.perf_counter()
    # The other arm uses the other core. With more threads, small operations would wait for each other.
    torch.set_num_threads(1)
    pool = make_pool(size.pool, seed)
    held_out = make_pool(size.held_out, seed + 10_000, exclude=pool)
    trainer = make_trainer(pool, output_dir, seed, size, held_out)
    arm = Arm(name, labels=len(pool))
    callback = None
    if name == "PivotTrace":
        callback = PivotDensityCallback(trainer, annotation_budget=ANNOTATION_BUDGET)
        trainer.add_callback(callback)
    else:
        trainer.add_callback(RunRecorder(name, num_labels=len(pool)))
    trainer.add_callback(_StepCallback(tell_step))
    trainer.train()
    history = trainer.state.log_history
    # Some versions of transformers do not evaluate after the last step.
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
