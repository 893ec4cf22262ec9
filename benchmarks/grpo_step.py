"""
A GRPO step with `PivotDensityCallback` against the same step without.

    python benchmarks/grpo_step.py --lengths 512 --output grpo_step.json

Two trainers take turns, a few steps each. Steps are timed from the trainer's own events, so that generation, rewards,
loss and optimizer are in, and the first scoring of the pool, which `triage_pool.py` measures, is not. LoRA, groups of
8, one group a batch, random weights of a known shape, completions of full length.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import SHAPES, make_model, report, synchronize
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from pivottrace_trl import PivotDensityCallback
from pivottrace_trl.demo.arm import MODEL_PATH


PROMPT_LENGTH, NUM_PROMPTS = 128, 16


class StepTimer(TrainerCallback):
    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def half_right(completions, solution, **kwargs):
    """A reward that costs nothing and differs within a group."""
    return [float(index % 2) for index in range(len(completions))]


def make_trainer(args: argparse.Namespace, length: int, folder: Path) -> GRPOTrainer:
    # The demo's tokenizer reads one token a character.
    prompts = [f"{number:0{PROMPT_LENGTH}d}" for number in range(NUM_PROMPTS)]
    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=args.steps,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=length - PROMPT_LENGTH,
        learning_rate=1e-6,
        gradient_checkpointing=args.gradient_checkpointing,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        logging_steps=1000,
    )
    return GRPOTrainer(
        model=make_model(args.shape, getattr(torch, args.dtype), args.device),
        reward_funcs=half_right,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "solution": ["0"] * NUM_PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(MODEL_PATH),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512])
    parser.add_argument("--steps", type=int, default=2, help="steps of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    rows = []
    for length in args.lengths:
        with tempfile.TemporaryDirectory() as folder:
            timers, trainers = {}, {}
            for name in ("plain", "routed"):
                trainers[name] = make_trainer(args, length, Path(folder) / name)
                timers[name] = StepTimer()
                trainers[name].add_callback(timers[name])
            callback = PivotDensityCallback(trainers["routed"], annotation_budget=0.5)
            trainers["routed"].add_callback(callback)
            for turn in range(args.turns + 1):
                for name, trainer in trainers.items():
                    trainer.train()
                    if turn == 0:
                        timers[name].seconds.clear()  # warm-up
                    print(length, turn, name, [round(seconds, 2) for seconds in timers[name].seconds], flush=True)
            callback.detach()
        plain, routed = (statistics.median(timers[name].seconds) for name in ("plain", "routed"))
        rows.append(
            {
                "tokens": length,
                "steps each": args.steps * args.turns,
                "plain s": round(plain, 3),
                "with callback s": round(routed, 3),
                "with callback / plain": round(routed / plain, 3),
            }
        )
    report(f"GRPO step, {args.shape} shape, {args.dtype}, {args.device}", rows, args.output)


if __name__ == "__main__":
    main()
