"""
GRPO on GSM8K with labels from people: the pool has none, the questions go out as a file, the answers come back while
training waits for half of them.

    python examples/human_in_the_loop.py --model Qwen/Qwen2.5-0.5B-Instruct

The person here is a script, so that the example runs by itself: it runs the two commands that people would run,
`pivottrace annotate export` and `pivottrace annotate import`, and fills the spreadsheet in between. For real people
take `ScriptedPerson` out and run `pivottrace desk OUTPUT_DIR`, or the two commands by hand.
"""

import argparse
import csv
import subprocess
import sys
import threading
from pathlib import Path

from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl import PivotDensityCallback, build_prompt


INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."


def load_gsm8k(path: str | None, limit: int | None) -> tuple[Dataset, dict[str, str]]:
    """The pool without any label, and what the scripted person knows: question -> answer."""
    dataset = (
        load_dataset("json", data_files=path, split="train") if path else load_dataset("openai/gsm8k", "main")["train"]
    )
    dataset = dataset.select(range(min(limit or len(dataset), len(dataset))))
    questions = list(dataset["question"])
    answers = [answer.split("####")[-1].strip() for answer in dataset["answer"]]
    pool = Dataset.from_dict({"prompt": [build_prompt(question, INSTRUCTION) for question in questions]})
    return pool, dict(zip(questions, answers, strict=True))


class ScriptedPerson(threading.Thread):
    """Takes a spreadsheet of questions every few seconds, fills most of it in, and hands it back."""

    def __init__(self, output_dir: str, knowledge: dict[str, str], seconds: float):
        super().__init__(daemon=True)
        self.is_over = threading.Event()
        self.num_answered = 0
        self._output_dir, self._knowledge, self._seconds = output_dir, knowledge, seconds

    def run(self) -> None:
        sheet = Path(self._output_dir) / "questions.csv"
        while not self.is_over.wait(self._seconds):
            if not (Path(self._output_dir) / "_pivottrace" / "ledger.sqlite").is_file():
                continue  # training has not begun
            self._pivottrace("export", self._output_dir, "--format", "csv", "--output", str(sheet), "--limit", "20")
            with sheet.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            # Every tenth question is left for another day; a partial file is welcome.
            for number, row in enumerate(rows):
                if len(rows) == 1 or number % 10 != 9:
                    row["answer"] = self._knowledge[row["prompt"]]
            with sheet.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["prompt_id", "answer"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
            self._pivottrace("import", self._output_dir, str(sheet), "--author", "script")
            self.num_answered += sum(bool(row["answer"]) for row in rows)

    @staticmethod
    def _pivottrace(*arguments: str) -> None:
        command = [sys.executable, "-m", "pivottrace_trl", "annotate", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="folder or hub id (%(default)s)")
    parser.add_argument("--dataset", help="JSON Lines file with `question` and `answer` (default: openai/gsm8k)")
    parser.add_argument("--output-dir", default="grpo-human-in-the-loop", help="(%(default)s)")
    parser.add_argument("--limit", type=int, help="use the first prompts only")
    parser.add_argument("--annotation-budget", type=float, default=0.293, help="share of the pool (%(default)s)")
    parser.add_argument("--wait-for", type=float, default=0.5, help="share of the questions to wait for (%(default)s)")
    parser.add_argument("--person-seconds", type=float, default=5.0, help="pause of the scripted person (%(default)s)")
    parser.add_argument("--max-steps", type=int, default=-1, help="optimizer steps (default: three epochs)")
    parser.add_argument("--max-completion-length", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="completions per device and step (%(default)s)")
    parser.add_argument("--use-cpu", action="store_true")
    args = parser.parse_args()

    pool, knowledge = load_gsm8k(args.dataset, args.limit)
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
        train_dataset=pool,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    callback = PivotDensityCallback(
        trainer,
        annotation_budget=args.annotation_budget,
        annotator="queue",
        wait_for_annotations=args.wait_for,
        instruction=INSTRUCTION,
    )
    trainer.add_callback(callback)
    person = ScriptedPerson(args.output_dir, knowledge, args.person_seconds)
    person.start()
    try:
        trainer.train()
    finally:
        person.is_over.set()
        person.join()
    print(callback.summary())
    subprocess.run([sys.executable, "-m", "pivottrace_trl", "annotate", "status", args.output_dir], check=True)


if __name__ == "__main__":
    main()
