"""Two arms under the same steps: full supervision, and PivotTrace on 29.3% of the labels."""

import json
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from ..answers import is_correct
from ..callback import PivotDensityCallback
from ..files import PRIVATE_FOLDER, replace_atomically
from ..report import comparison
from ..tracing.rollouts import generate_rollouts, transformers_generator
from .arithmetic import make_pool
from .plots import plot_arms


MODEL_PATH = Path(__file__).parent / "model"
POOL_SIZE = 256
NUM_HELD_OUT = 128
NUM_EVAL_SAMPLES = 4
ANNOTATION_BUDGET = 0.293
MAX_STEPS = 60
EVAL_EVERY = 10


@dataclass
class Arm:
    """
    What one arm did.

    Attributes:
        name (`str`): name of the arm.
        labels (`int`): labels used.
        steps (`list[int]`): optimizer steps at which it was evaluated, 0 first.
        accuracies (`list[float]`): held-out accuracy at those steps, averaged over the samples of each problem.
        rollout_tokens (`list[int]`): tokens generated up to those steps, scoring included, evaluation not.
        seconds (`float`): wall-clock time, evaluation included.
    """

    name: str
    labels: int = 0
    steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    rollout_tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0


class HeldOutCallback(TrainerCallback):
    """
    Evaluates the policy on held-out problems: accuracy of answers sampled at temperature 1, averaged over samples.

    Args:
        trainer ([`~trl.GRPOTrainer`]): the trainer.
        held_out ([`~datasets.Dataset`]): problems with columns `prompt` and `solution`.
        arm ([`Arm`]): takes the results.
        seed (`int`): seed of the samples.
    """

    def __init__(self, trainer: GRPOTrainer, held_out: Dataset, arm: Arm, seed: int):
        self._trainer = trainer
        self._prompts = [prompt for prompt in held_out["prompt"] for _ in range(NUM_EVAL_SAMPLES)]
        self._solutions = [solution for solution in held_out["solution"] for _ in range(NUM_EVAL_SAMPLES)]
        self._arm = arm
        self._seed = seed

    def on_train_begin(self, args, state, control, **kwargs):
        """Evaluate before the first step."""
        self._evaluate(state)

    def on_step_end(self, args, state, control, **kwargs):
        """Evaluate every few steps and after the last one."""
        if state.global_step % EVAL_EVERY == 0 or state.global_step == state.max_steps:
            self._evaluate(state)

    def _evaluate(self, state) -> None:
        trainer: Any = self._trainer
        config = GenerationConfig(
            max_new_tokens=trainer.max_completion_length, do_sample=True, temperature=1.0, top_k=0, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        generate = transformers_generator(trainer.model, trainer.processing_class, config)
        ids = [
            trainer.processing_class.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for prompt in self._prompts
        ]
        was_training = trainer.model.training
        trainer.model.eval()
        # The same random numbers in both arms, and none taken from training.
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            rollouts = generate_rollouts(generate, ids, batch_size=len(ids), progress=False)
        trainer.model.train(was_training)
        texts = trainer.processing_class.batch_decode([r.completion_ids for r in rollouts], skip_special_tokens=True)
        right = [is_correct(text, solution) for text, solution in zip(texts, self._solutions, strict=True)]
        self._arm.steps.append(state.global_step)
        self._arm.accuracies.append(float(np.mean(right)))
        self._arm.rollout_tokens.append(int(state.num_input_tokens_seen))


def make_trainer(pool: Dataset, output_dir: Path, seed: int, max_steps: int) -> GRPOTrainer:
    """
    The ordinary TRL script that both arms share: real `GRPOTrainer`, real LoRA, TRL's own `accuracy_reward`.

    Args:
        pool ([`~datasets.Dataset`]): training problems with labels.
        output_dir (`Path`): folder of the run.
        seed (`int`): seed of adapters, order and sampling.
        max_steps (`int`): optimizer steps.

    Returns:
        [`~trl.GRPOTrainer`]
    """
    args = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=max_steps,
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
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
        reward_funcs=accuracy_reward,
        args=args,
        train_dataset=pool,
        processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )


def run_arm(name: str, pool: Dataset, held_out: Dataset, output_dir: Path, seed: int, max_steps: int) -> Arm:
    """
    Train one arm.

    Args:
        name (`str`): `"full supervision"` or `"PivotTrace"`.
        pool ([`~datasets.Dataset`]): training problems.
        held_out ([`~datasets.Dataset`]): problems to evaluate on.
        output_dir (`Path`): folder of the run.
        seed (`int`): seed.
        max_steps (`int`): optimizer steps.

    Returns:
        [`Arm`]
    """
    start = time.perf_counter()
    arm = Arm(name)
    trainer = make_trainer(pool, output_dir, seed, max_steps)
    callback = None
    if name == "PivotTrace":
        callback = PivotDensityCallback(trainer, annotation_budget=ANNOTATION_BUDGET)
        trainer.add_callback(callback)
    trainer.add_callback(HeldOutCallback(trainer, held_out, arm, seed))
    trainer.train()
    if callback is None:
        arm.labels = len(pool)
    else:
        arm.labels = callback.summary()["annotated"]
        arm.rollout_tokens = [tokens + callback.num_scoring_tokens for tokens in arm.rollout_tokens]
        callback.detach()
    arm.seconds = time.perf_counter() - start
    return arm


def first_step_at(arm: Arm, accuracy: float) -> int | None:
    """First evaluated step after the start at which an arm reached an accuracy, `None` if it never did."""
    return comparison.first_step_at(np.array(arm.steps), np.array(arm.accuracies), accuracy)


def run_demo(output_dir: Path, seed: int = 0, max_steps: int | None = None) -> list[Arm]:
    """
    Run both arms and show what came out, whichever wins.

    Args:
        output_dir (`Path`): folder for `results.json`, `learning_curves.png` and the runs.
        seed (`int`, *optional*, defaults to `0`): seed of pool, training and evaluation.
        max_steps (`int`, *optional*): optimizer steps of each arm.

    Returns:
        `list[Arm]`: full supervision and PivotTrace.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Beside another job the threads of every small operation wait for each other: minutes become a quarter of an hour.
    torch.set_num_threads(1)
    console = Console()
    max_steps = max_steps or MAX_STEPS
    pool = make_pool(POOL_SIZE, seed)
    held_out = make_pool(NUM_HELD_OUT, seed + 10_000, exclude=pool)
    arms = []
    for name in ("full supervision", "PivotTrace"):
        console.rule(f"{name}, {max_steps} steps")
        folder = output_dir / name.lower().replace(" ", "-")
        # Each demo is an experiment of its own: labels bought in an earlier one must not be known in this one.
        # With the write-ahead log of a run that was killed.
        for path in (folder / PRIVATE_FOLDER).glob("ledger.sqlite*"):
            path.unlink()
        arms.append(run_arm(name, pool, held_out, folder, seed, max_steps))
    _show(console, arms, output_dir, seed)
    return arms


def _show(console: Console, arms: list[Arm], output_dir: Path, seed: int) -> None:
    full, pivot = arms
    # Standard error of a mean over independent problems, at worst (accuracy 0.5, samples of a problem all alike).
    error = 0.5 / NUM_HELD_OUT**0.5
    table = Table(title=f"Held-out accuracy (avg@{NUM_EVAL_SAMPLES} of {NUM_HELD_OUT} problems, seed {seed})")
    for column in ("arm", "labels", "before", "after", "best", "rollout tokens", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in arms:
        table.add_row(
            arm.name, str(arm.labels), f"{arm.accuracies[0]:.1%}", f"{arm.accuracies[-1]:.1%}",
            f"{max(arm.accuracies):.1%}", f"{arm.rollout_tokens[-1]:,}", f"{arm.seconds:.0f}",
        )  # fmt: skip
    console.print(table)
    curves = Table(title="Learning curves")
    curves.add_column("step", justify="right")
    for arm in arms:
        curves.add_column(arm.name, justify="right")
    for row in zip(full.steps, full.accuracies, pivot.accuracies, strict=True):
        curves.add_row(str(row[0]), *(f"{accuracy:.1%}" for accuracy in row[1:]))
    console.print(curves)
    target, difference = full.accuracies[-1], pivot.accuracies[-1] - full.accuracies[-1]
    step = first_step_at(pivot, target)
    share = pivot.labels / full.labels
    if step is None:
        console.print(f"PivotTrace did not reach the final accuracy of full supervision ({target:.1%}) on this seed.")
    else:
        console.print(
            f"PivotTrace reached the final accuracy of full supervision ({target:.1%}) at step {step} of "
            f"{full.steps[-1]}, with {share:.1%} of the labels."
        )
    verdict = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
    console.print(
        f"At the end PivotTrace is {abs(difference):.1%} {verdict} full supervision (standard error up to {error:.1%} "
        "an arm: one seed proves little)."
    )
    results = {"seed": seed, "arms": [asdict(arm) for arm in arms]}
    replace_atomically(output_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=2) + "\n"))
    plot_arms(arms, output_dir / "learning_curves.png")
    traces = output_dir / "pivottrace" / PRIVATE_FOLDER
    console.print(f"Curves: {output_dir / 'learning_curves.png'}. Routes and traces: {traces}")
