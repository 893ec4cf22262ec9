"""
An ordinary GRPO script on GSM8K, and the two lines that make it pick its own labels.

    python examples/grpo_two_lines.py --model Qwen/Qwen2.5-0.5B-Instruct

`--dataset` takes a local JSON Lines file with the columns `question` and `answer` instead of the hub's copy.
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl import PivotDensityCallback, build_prompt


INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."


def load_gsm8k(path: str | None):
    dataset = (
        load_dataset("json", data_files=path, split="train") if path else load_dataset("openai/gsm8k", "main")["train"]
    )

    def to_row(row):
        return {
            "prompt": build_prompt(row["question"], INSTRUCTION),
            "solution": row["answer"].split("####")[-1].strip().replace(",", ""),
        }

    return dataset.map(to_row, remove_columns=dataset.column_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="folder or hub id (%(default)s)")
    parser.add_argument("--dataset", help="JSON Lines file with `question` and `answer` (default: openai/gsm8k)")
    parser.add_argument("--output-dir", default="grpo-gsm8k", help="(%(default)s)")
    parser.add_argument("--limit", type=int, help="use the first prompts only")
    parser.add_argument("--max-steps", type=int, default=-1, help="optimizer steps (default: three epochs)")
    parser.add_argument("--max-completion-length", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="completions per device and step (%(default)s)")
    parser.add_argument("--use-cpu", action="store_true")
    args = parser.parse_args()

    dataset = load_gsm8k(args.dataset)
    trainer = GRPOTrainer(
        model=args.model,
        reward_funcs=accuracy_reward,
        args=GRPOConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            max_completion_length=args.max_completion_length,
            logging_steps=1,
            report_to="none",
            use_cpu=args.use_cpu,
            bf16=not args.use_cpu,
        ),
        train_dataset=dataset.select(range(args.limit)) if args.limit else dataset,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.add_callback(PivotDensityCallback(trainer, annotation_budget=0.293, instruction=INSTRUCTION))
    trainer.train()


if __name__ == "__main__":
    main()
