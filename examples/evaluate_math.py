"""
Accuracy of a model on mathematics benchmarks: avg@k, the share of right answers among k samples of each problem,
averaged over the problems.

    python examples/evaluate_math.py --model Qwen/Qwen2.5-0.5B-Instruct --benchmarks gsm8k math500
    python examples/evaluate_math.py --model Qwen/Qwen3-4B-Base --adapter grpo-gsm8k/checkpoint-500 --output after

Every batch of responses is appended to `OUTPUT/NAME.responses.jsonl`: the same command goes on where an earlier one
stopped. `OUTPUT/results.json` has the figures. By default nothing is cut off in sampling (temperature 1, top-p 1); the
temperature behind the figures of the PivotTrace paper is not known to us.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, load_dataset
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pivottrace_trl import MathAccuracy, prompt_id
from pivottrace_trl.tracing import transformers_generator


class Benchmark(NamedTuple):
    source: str  # id on the hub
    config: str | None
    split: str
    prompt: str  # column of the problems
    answer: str  # column of the gold answers
    samples: int  # k of avg@k


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", "problem", "answer", 32),
    "aime25": Benchmark("math-ai/aime25", None, "test", "problem", "answer", 32),
    "amc23": Benchmark("math-ai/amc23", None, "test", "question", "answer", 32),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", 4),
    "minerva": Benchmark("math-ai/minervamath", None, "test", "question", "answer", 4),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", "question", "final_answer", 4),
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "question", "answer", 4),
}
INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."


@dataclass
class Task:
    """A benchmark as this call evaluates it, with the responses that there are, by (problem, sample)."""

    name: str
    prompts: list[str]
    references: list[str]
    settings: dict[str, Any]
    path: Path
    responses: dict[tuple[int, int], dict[str, Any]]


def prepare(name: str, args: argparse.Namespace) -> Task:
    """Load the problems, and what an earlier call has written."""
    benchmark = BENCHMARKS[name]
    source = args.data.get(name, benchmark.source)
    dataset = load_problems(benchmark, args.data.get(name), args.limit)
    for column in (benchmark.prompt, benchmark.answer):
        if column not in dataset.column_names:
            raise ValueError(f"{source} has no column `{column}`, only {dataset.column_names}. Rename the right one.")
    prompts = [f"{problem}\n{INSTRUCTION}" for problem in dataset[benchmark.prompt]]
    # OlympiadBench has a list where one problem may ask for several values.
    golds = [gold if isinstance(gold, list) else [gold] for gold in dataset[benchmark.answer]]
    references = [", ".join(map(str, gold)) for gold in golds]
    settings = {
        "model": args.model,
        "adapter": args.adapter,
        "source": source,
        "num_problems": len(prompts),
        "prompts": prompt_id("\n".join(prompts)),
        "samples": args.samples or (benchmark.samples if args.temperature else 1),
        "temperature": args.temperature,
        "max_completion_length": args.max_completion_length,
        "seed": args.seed,
    }
    path = args.output / f"{name}.responses.jsonl"
    return Task(name, prompts, references, settings, path, read_responses(path, settings))


def load_problems(benchmark: Benchmark, path: str | None, limit: int | None) -> Dataset:
    """Load the problems from a local file of JSON Lines, or from the hub."""
    if path is None:
        dataset = load_dataset(benchmark.source, benchmark.config, split=benchmark.split)
    else:
        dataset = load_dataset("json", data_files=path, split="train")
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def read_responses(path: Path, settings: dict[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """Read the responses of earlier calls; above them stand their settings, which must be those of this call."""
    content = path.read_bytes() if path.is_file() else b""
    # An interrupted call may have left the beginning of one more line.
    finished = content[: content.rfind(b"\n") + 1] or to_line(settings)
    if finished != content:
        write_whole(path, finished)
    header, *responses = map(json.loads, finished.splitlines())
    different = {key: (header.get(key), value) for key, value in settings.items() if header.get(key) != value}
    if different:
        raise ValueError(
            f"{path} holds responses made with other settings: (there, now) is {different}. Use a fresh --output."
        )
    return {(response["problem"], response["sample"]): response for response in responses}


def to_line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def load_model(args: argparse.Namespace):
    """Load model and tokenizer, set to sample (or not) as the arguments say and in no other way."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", device_map="auto")
    end_ids = model.generation_config.eos_token_id or tokenizer.eos_token_id
    sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    # Replaced as a whole: `generate` fills what a configuration leaves open, such as a repetition penalty, from here.
    model.generation_config = GenerationConfig(
        max_new_tokens=args.max_completion_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[end_ids] if isinstance(end_ids, int) else end_ids,
        **(sampling if args.temperature else {"do_sample": False}),
    )
    if args.adapter is not None:
        model = PeftModel.from_pretrained(model, args.adapter)
    return model.eval(), tokenizer


def tokenize(tokenizer, prompts: list[str]) -> list[list[int]]:
    """Tokenize problems: a chat model gets them through its chat template, a base model as they are."""
    if tokenizer.chat_template is None:
        return tokenizer(prompts)["input_ids"]
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=False)


def respond(task: Task, model, tokenizer, args: argparse.Namespace) -> None:
    """Generate the responses that are missing, and append them to the file batch by batch."""
    config = model.generation_config
    generate = transformers_generator(model, tokenizer, config)
    prompt_ids = tokenize(tokenizer, task.prompts)
    # Batches of similar length, the longest first, so that what does not fit into memory fails at once.
    order = sorted(range(len(prompt_ids)), key=lambda problem: len(prompt_ids[problem]), reverse=True)
    jobs = [(problem, sample) for problem in order for sample in range(task.settings["samples"])]
    missing = [number for number, job in enumerate(jobs) if job not in task.responses]
    with Progress() as progress, task.path.open("ab") as file:
        bar = progress.add_task(task.name, total=len(jobs), completed=len(task.responses))
        for start in range(0, len(missing), args.batch_size):
            batch = missing[start : start + args.batch_size]
            # No two batches begin with the same job, so that no random numbers are used twice, also after a restart.
            torch.manual_seed(args.seed + 1_000_003 * batch[0])
            began = time.perf_counter()
            completions = generate([prompt_ids[jobs[number][0]] for number in batch])
            seconds = (time.perf_counter() - began) / len(batch)
            for number, ids in zip(batch, completions, strict=True):
                problem, sample = jobs[number]
                task.responses[problem, sample] = response = {
                    "problem": problem,
                    "sample": sample,
                    "text": tokenizer.decode(ids, skip_special_tokens=True),
                    "num_tokens": len(ids),
                    "is_cut_off": ids[-1] not in config.eos_token_id,
                    "seconds": seconds,
                }
                file.write(to_line(response))
            file.flush()
            progress.advance(bar, len(batch))


def score(task: Task, model) -> dict[str, Any]:
    """Verify all responses of a task and sum them up."""
    num_problems, num_samples = len(task.prompts), task.settings["samples"]
    texts = [[task.responses[i, k]["text"] for k in range(num_samples)] for i in range(num_problems)]
    metric = MathAccuracy().compute(predictions=texts, references=task.references, progress=True)
    shares, responses = metric["accuracy_per_problem"], task.responses.values()
    return {
        "accuracy": metric["accuracy"],
        "standard_error": statistics.stdev(shares) / math.sqrt(num_problems) if num_problems > 1 else None,
        "mean_response_tokens": statistics.fmean(response["num_tokens"] for response in responses),
        "cut_off_ratio": statistics.fmean(response["is_cut_off"] for response in responses),
        "generation_seconds": math.fsum(response["seconds"] for response in responses),
        **task.settings,
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "command": shlex.join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "math-verify")},
    }


def print_results(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="avg@k ± standard error over the problems")
    for column in ("benchmark", "k", "accuracy", "problems", "tokens", "cut off", "seconds"):
        table.add_column(column, justify="left" if column == "benchmark" else "right", no_wrap=True)
    for name, result in results.items():
        error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.1%}"
        table.add_row(
            name,
            str(result["samples"]),
            f"{result['accuracy']:.1%}{error}",
            str(result["num_problems"]),
            f"{result['mean_response_tokens']:.0f}",
            f"{result['cut_off_ratio']:.1%}",
            f"{result['generation_seconds']:.0f}",
        )
    Console().print(table)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="folder or hub id (%(default)s)")
    parser.add_argument("--adapter", help="folder or hub id of a PEFT adapter on top of it")
    parser.add_argument(
        "--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME=FILE",
        help="JSON Lines with the same columns instead of the hub's copy of a benchmark",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, help="use the first problems only")
    parser.add_argument("--samples", type=positive, help="samples a problem (default: 32 for AIME and AMC, else 4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy, one sample (%(default)s)")
    parser.add_argument("--max-completion-length", type=positive, default=4096, help="tokens (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, help="responses at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("math-evaluation"), help="folder (%(default)s)")
    args = parser.parse_args()
    args.data = dict(item.partition("=")[::2] for item in args.data)
    for name in args.data:
        if name not in args.benchmarks:
            parser.error(f"--data names {name!r}, but --benchmarks has {args.benchmarks}; write NAME=FILE")
    if args.temperature < 0:
        parser.error(f"--temperature is {args.temperature}, but must be at least 0")
    if not args.temperature and args.samples not in (None, 1):
        parser.error(f"--samples is {args.samples}, but with --temperature 0 all samples are the same: leave it out")
    return args


def main() -> None:
    args = parse_arguments()
    tasks = [prepare(name, args) for name in args.benchmarks]
    model, tokenizer = load_model(args)
    path = args.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for task in tasks:
        respond(task, model, tokenizer, args)
        results[task.name] = score(task, model)
        write_whole(path, (json.dumps(results, indent=2) + "\n").encode())
    print_results(results)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
