r"""
What annotation buys: full supervision, PivotTrace and its rivals under one protocol, arm by arm and seed by seed.

    python examples/reproduce_annotation_efficiency.py --preset tiny --output runs      # CPU, minutes an arm
    python examples/reproduce_annotation_efficiency.py --preset consumer --output runs  # one GPU with 16 GB
    pivottrace report runs

Every arm starts from the same policy and makes the same number of steps with the same number of rollouts a step. What
differs is in `ARMS`: which prompts are trained on, and whose answers they are rewarded by. A run that is finished is
not run again, and one that was interrupted goes on from its last checkpoint, so that the same command resumes the
experiment. Two machines can share it: give each its own `--seeds`.

`paper` is the published setting (Qwen3-4B-Base, DAPO-Math, vLLM). We have not run it: it needs GPUs that we did not
have. Training takes one of them, vLLM the others:

    CUDA_VISIBLE_DEVICES=1,2,3 trl vllm-serve --model Qwen/Qwen3-4B-Base --data-parallel-size 3
    CUDA_VISIBLE_DEVICES=0 python examples/reproduce_annotation_efficiency.py --preset paper --output runs-paper
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from pivottrace_trl import PivotDensityCallback, RunRecorder, TriageConfig
from pivottrace_trl.demo import (
    MODEL_PATH,
    DearestLabelReward,
    QuickTrainer,
    VoteReward,
    cached_accuracy_reward,
    generate_quickly,
    make_pool,
    right_vote_reward,
)
from pivottrace_trl.report import find_runs


INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."
# The published shares: annotate the top 29.3% of the ranking, discard the lowest 42.1%, vote on what lies between.
ANNOTATED, DISCARDED = 0.293, 0.421


# What is discarded where nothing but the annotated prompts is trained on.
NOT_ANNOTATED = 0.708


@dataclass(frozen=True)
class Arm:
    """
    One way to label a pool. Without an `estimator` no callback is attached: everything is trained on, by the `reward`
    of that name, or the `random_share` of the pool that is labelled.
    """

    label: str
    estimator: str | None = None
    annotation_budget: float = ANNOTATED
    config: TriageConfig = field(default_factory=lambda: TriageConfig(discard_ratio=DISCARDED))
    reward: Literal["label", "vote", "right vote", "dearest label"] = "label"
    random_share: float | None = None
    buy: Literal["before", "after"] = "before"


ARMS = {
    "full": Arm("full supervision"),
    "pivottrace": Arm("PivotTrace", "pivot_count"),
    "pivottrace-keep": Arm("PivotTrace, nothing discarded", "pivot_count", config=TriageConfig(discard_ratio=0.0)),
    "two-lines": Arm("two lines (defaults)", "total_entropy", config=TriageConfig()),
    "random": Arm("Random", "random"),
    "entropy": Arm("Entropy", "entropy"),
    "self-certainty": Arm("Self-Certainty", "self_certainty"),
    "consistency": Arm("Consistency", "consistency"),
    "majority": Arm("majority vote, no label", reward="vote"),
}
# What one would do instead, and what could be reached at best.
RIVALS = {
    "random-labelled-only": Arm("29.3% labelled at random, trained on those only", random_share=ANNOTATED),
    "random-with-votes": Arm(
        "29.3% labelled at random, votes on the rest", "random", config=TriageConfig(discard_ratio=0.0)
    ),
    "uncertain-labelled-only": Arm(
        "the 29.3% with the highest total entropy labelled, trained on those only", "total_entropy",
        config=TriageConfig(discard_ratio=NOT_ANNOTATED, reroutes=False),
    ),
    "buy-after": Arm(
        "two lines, labels bought after the rollout", "total_entropy", config=TriageConfig(), buy="after"
    ),
    # What succeeds with more than 0.85 is discarded, and all else annotated.
    "full-routed": Arm(
        "labels for all that our sampler keeps, mastered prompts discarded", "total_entropy", 1.0,
        config=TriageConfig(tau_low=0.15),
    ),
    "ceiling-right-votes": Arm(
        "ceiling, reads all labels: two lines, and a vote that is wrong gives no reward", "total_entropy",
        config=TriageConfig(), reward="right vote",
    ),
    "ceiling-dearest-labels": Arm(
        "ceiling, reads all labels: 29.3% bought after the rollout, where they change the gradient most, votes on the "
        "rest", reward="dearest label",
    ),
}  # fmt: skip
# Each changes one stage of an arm above, to find out which of them wins or loses.
ABLATIONS = {
    "ablation-score": Arm("score: total entropy", "total_entropy"),
    "ablation-probes": Arm("thresholds: defaults, 16 probes", "total_entropy", config=TriageConfig(probe_size=16)),
    "ablation-pseudo-labels": Arm("votes: all kept prompts annotated", "pivot_count", 1 - DISCARDED),
    "ablation-rerouting": Arm(
        "routes fixed at the start", "pivot_count", config=TriageConfig(discard_ratio=DISCARDED, reroutes=False)
    ),
}
EVERY_ARM = {**ARMS, **RIVALS, **ABLATIONS}


@dataclass(frozen=True)
class Preset:
    """Model, pool, evaluation and trainer of an experiment."""

    model: str
    train: str
    evaluate: dict[str, str]
    pool_size: int | None
    num_held_out: int
    num_seeds: int
    trainer: dict[str, Any]
    lora: bool = False
    load_in_4bit: bool = False


PRESETS = {
    # The package's embedded model of a million parameters, on chains of additions made on the spot.
    "tiny": Preset(
        model="embedded",
        train="chains",
        evaluate={"chains": "chains"},
        pool_size=256,
        num_held_out=256,
        num_seeds=5,
        lora=True,
        trainer={
            "max_steps": 60, "eval_steps": 10, "logging_steps": 2, "per_device_train_batch_size": 64,
            "per_device_eval_batch_size": 128, "num_generations": 8, "num_generations_eval": 2,
            "max_completion_length": 80, "learning_rate": 5e-4, "gradient_checkpointing": False, "use_cpu": True,
            "bf16": False, "save_strategy": "no",
        },
    ),
    "consumer": Preset(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        train="openai/gsm8k:main:train",
        evaluate={"gsm8k": "openai/gsm8k:main:test", "math500": "HuggingFaceH4/MATH-500::test"},
        pool_size=2048,
        num_held_out=256,
        num_seeds=3,
        lora=True,
        load_in_4bit=True,
        trainer={
            "max_steps": 300, "eval_steps": 25, "logging_steps": 5, "save_steps": 50,
            "per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "per_device_eval_batch_size": 64,
            "num_generations": 8, "num_generations_eval": 1, "max_completion_length": 384, "learning_rate": 2e-5,
            "bf16": True,
        },
    ),
    "paper": Preset(
        model="Qwen/Qwen3-4B-Base",
        train="open-r1/DAPO-Math-17k-Processed:en:train",
        evaluate={"math500": "HuggingFaceH4/MATH-500::test"},
        pool_size=None,
        num_held_out=500,
        num_seeds=1,
        trainer={
            "max_steps": 400, "eval_steps": 50, "logging_steps": 1, "save_steps": 50, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 16, "per_device_eval_batch_size": 32, "num_generations": 8,
            "num_generations_eval": 4, "max_completion_length": 4096, "learning_rate": 1e-6, "bf16": True,
            "use_vllm": True, "vllm_mode": "server",
        },
    ),
}  # fmt: skip
# What the columns of a set may be called.
QUESTIONS, ANSWERS = ("question", "problem", "prompt"), ("answer", "solution")


def load_math(source: str, limit: int | None) -> Dataset:
    """A local JSON Lines file, or `hub id:configuration:split`, as prompts and solutions."""
    if Path(source).is_file():
        dataset = load_dataset("json", data_files=source, split="train")
    else:
        name, config, split = source.split(":")
        dataset = load_dataset(name, config or None, split=split)
    question = next(name for name in QUESTIONS if name in dataset.column_names)
    answer = next(name for name in ANSWERS if name in dataset.column_names)
    rows = dataset.select(range(min(limit or len(dataset), len(dataset))))
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{text}\n{INSTRUCTION}"}] for text in rows[question]],
            "solution": [f"${text.split('####')[-1].strip().replace(',', '')}$" if "####" in text else f"${text}$"
                         for text in rows[answer]],
        }
    )  # fmt: skip


def load_data(preset: Preset, seed: int) -> tuple[Dataset, dict[str, Dataset]]:
    """The pool, and the sets to evaluate on."""
    if preset.train.startswith("chains"):
        # "chains:0.7": seven in ten are replaced by problems that the embedded model masters.
        easy_ratio = float(preset.train.partition(":")[2] or 0)
        pool = make_pool(preset.pool_size or 256, seed, easy_ratio=easy_ratio)
        return pool, {"chains": make_pool(preset.num_held_out, seed + 10_000, exclude=pool)}
    pool = load_math(preset.train, None).shuffle(seed)
    pool = pool.select(range(min(preset.pool_size or len(pool), len(pool))))
    return pool, {name: load_math(source, preset.num_held_out) for name, source in preset.evaluate.items()}


def label_pool(arm: Arm, pool: Dataset, num_generations: int, seed: int) -> tuple[Dataset, Callable, int | None]:
    """What an arm trains on, the reward, and the number of labels, `None` where the callback counts them."""
    num_labels = int(arm.annotation_budget * len(pool))
    if arm.reward == "vote":
        return pool.remove_columns("solution"), VoteReward(num_generations), 0
    if arm.reward == "dearest label":
        return pool.rename_column("solution", "truth"), DearestLabelReward(num_generations, ANNOTATED), num_labels
    if arm.reward == "right vote":
        return pool, right_vote_reward(pool), None
    if arm.random_share is not None:
        chosen = np.random.default_rng([seed, 293]).permutation(len(pool))[:num_labels]
        return pool.select(np.sort(chosen)), cached_accuracy_reward, num_labels
    return pool, cached_accuracy_reward, None if arm.estimator else len(pool)


def run_arm(
    arm: Arm, preset: Preset, seed: int, folder: Path, settings: dict[str, Any], checkpoint: str | None
) -> None:
    """Train one arm with one seed; the record is in `folder/run.json` when it is done."""
    pool, held_out = load_data(preset, seed)
    model = str(MODEL_PATH) if preset.model == "embedded" else preset.model
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    dataset, reward, num_labels = label_pool(arm, pool, preset.trainer["num_generations"], seed)
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    args = GRPOConfig(
        output_dir=str(folder),
        eval_strategy="steps",
        eval_on_start=True,
        beta=0.0,
        temperature=1.0,
        report_to="none",
        seed=seed,
        **{**schedule, **preset.trainer},
    )
    trainer = QuickTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=dataset,
        eval_dataset=held_out if len(held_out) > 1 else next(iter(held_out.values())),
        quantization_config=nf4 if preset.load_in_4bit else None,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if preset.lora else None,
    )
    if preset.model == "embedded":
        generate_quickly(trainer.model)
    if arm.estimator is not None:
        trainer.add_callback(
            PivotDensityCallback(
                trainer, arm.annotation_budget, buy=arm.buy, estimator=arm.estimator, config=arm.config
            )
        )
    trainer.add_callback(RunRecorder(arm.label, num_labels, settings))
    trainer.train(resume_from_checkpoint=checkpoint)


def check_settings(folder: Path, settings: dict[str, Any]) -> str | None:
    """Checkpoint to go on from, if any. What a run without one left behind, labels included, is removed."""
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    is_finished = (folder / "run.json").is_file()
    if (is_finished or checkpoint is not None) and path.read_text() != text:
        raise SystemExit(f"{folder} was begun with other settings, see {path}. Choose another --output, or remove it.")
    if checkpoint is None and not is_finished:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path.write_text(text)
    return checkpoint


def summarize(folder: Path, full: Path, preset: Preset, arm: str, seconds: float) -> dict[str, Any]:
    """One line on a run; what is compared with full supervision is null where that run of its seed is not there."""
    run = find_runs([folder])[0]
    curve = next(iter(run.evaluations.values()))
    reached = curve.steps < 0
    if (full / "run.json").is_file():
        goal = next(iter(find_runs([full])[0].evaluations.values())).accuracy[-1]
        reached = (curve.accuracy >= goal) & (curve.steps > 0)
    return {
        "testbed": f"{preset.train}/{preset.pool_size}",
        "arm": arm,
        "seed": run.seed,
        "labels": run.num_labels,
        "final_accuracy": round(float(curve.accuracy[-1]), 4),
        "mean_accuracy": round(float(curve.accuracy[curve.steps > 0].mean()), 4),
        "steps_to_full": int(curve.steps[reached][0]) if reached.any() else None,
        "tokens_to_full": int(curve.tokens[reached][0]) if reached.any() else None,
        "tokens": int(curve.tokens[-1]),
        "seconds": round(seconds),
        "schedule": str(preset.trainer.get("lr_scheduler_type", "constant_with_warmup")),
        "curve": [
            [int(step), round(float(accuracy), 4), int(tokens)]
            for step, accuracy, tokens in zip(curve.steps, curve.accuracy, curve.tokens, strict=True)
        ],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder: ARM/seed-N (%(default)s)")
    names = list(EVERY_ARM)
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=names,
        default=list(ARMS),
        metavar="ARM",
        help="\n".join(f"{name}: {arm.label}" for name, arm in EVERY_ARM.items()).replace("%", "%%"),
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: 0 to 4 for tiny, 0 to 2 for consumer)")
    parser.add_argument("--model", help="folder or hub id, instead of the preset's")
    parser.add_argument("--train", help="JSON Lines file with `question` and `answer`, or chains:SHARE_OF_EASY_ONES")
    parser.add_argument("--evaluate", nargs="+", metavar="NAME=FILE", help="JSON Lines files to evaluate on")
    parser.add_argument("--pool-size", type=int, help="prompts in the pool")
    parser.add_argument("--num-held-out", type=int, help="problems to evaluate on")
    parser.add_argument("--no-4bit", action="store_true", help="do not quantize the model")
    parser.add_argument("--summary", type=Path, help="JSON Lines file to which every run adds a line")
    parser.add_argument(
        "--trainer",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other values for GRPOConfig, such as\nlr_scheduler_type=linear (constant by default)",
    )
    return parser.parse_args()


def read_value(text: str) -> Any:
    """A value of the command line: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def configure(args: argparse.Namespace) -> Preset:
    """The preset with what the command line changes."""
    preset = asdict(PRESETS[args.preset])
    for key in ("model", "train", "pool_size", "num_held_out"):
        preset[key] = preset[key] if getattr(args, key) is None else getattr(args, key)
    if args.evaluate:
        preset["evaluate"] = dict(item.split("=", 1) for item in args.evaluate)
    preset["load_in_4bit"] = preset["load_in_4bit"] and not args.no_4bit
    preset["trainer"] |= {key: read_value(value) for key, value in (item.split("=", 1) for item in args.trainer)}
    return Preset(**preset)


def main() -> None:
    args = parse()
    preset = configure(args)
    seeds = args.seeds or list(range(preset.num_seeds))
    # Seed by seed, so that an experiment that is cut short still compares all arms.
    todo = [(seed, name) for seed in seeds for name in args.arms]
    durations: list[float] = []
    for number, (seed, name) in enumerate(todo):
        arm, folder = EVERY_ARM[name], args.output / name / f"seed-{seed}"
        settings = {"preset": asdict(preset), "arm": asdict(arm)}
        checkpoint = check_settings(folder, settings)
        if (folder / "run.json").is_file():
            print(f"{folder} is finished.")
            continue
        eta = (
            f", about {sum(durations) / len(durations) * (len(todo) - number) / 60:.0f} minutes left"
            if durations
            else ""
        )
        print(f"Run {number + 1} of {len(todo)}: {name}, seed {seed}{eta}", flush=True)
        start = time.perf_counter()
        run_arm(arm, preset, seed, folder, settings, checkpoint)
        durations.append(time.perf_counter() - start)
        if args.summary is not None:
            full = args.output / "full" / folder.name
            line = summarize(folder, full, preset, name, durations[-1])
            args.summary.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that the line is written as a whole, whoever else writes.
            with args.summary.open("ab", buffering=0) as file:
                file.write((json.dumps(line) + "\n").encode())
    print(f"Look at them: pivottrace report {args.output}")


if __name__ == "__main__":
    main()
