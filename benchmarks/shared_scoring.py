"""
Answering and tracing a pool in two processes against one, which take turns.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/shared_scoring.py --output shared_scoring.json

One thread a process, so that two processes have twice the cores of one. Random weights of a known shape, responses of
full length.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
from common import SHAPES, make_model, report
from transformers import AutoTokenizer, GenerationConfig

from pivottrace_trl import trace_rollouts
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.processes import Processes, SharedWork
from pivottrace_trl.tracing.rollouts import even_batches, generate_rollouts, transformers_generator


PROMPT_LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a response")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    processes = Processes(dist.get_rank(), dist.get_world_size())
    model = make_model(args.shape, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 100, (args.prompts, PROMPT_LENGTH), generator=generator).tolist()
    config = GenerationConfig(max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=True, pad_token_id=0)
    respond = transformers_generator(model, AutoTokenizer.from_pretrained(MODEL_PATH), config)
    batches = even_batches(prompts, args.batch)

    def generate(prompt_ids: list[list[int]], number: int) -> list[list[int]]:
        torch.manual_seed(number)
        return respond(prompt_ids)

    def score(work: SharedWork) -> list[list[int]]:
        rollouts = generate_rollouts(generate, prompts, batches, progress=False, work=work)
        trace_rollouts(model, rollouts, 0, progress=False, work=work)
        return [rollout.completion_ids for rollout in rollouts]

    seconds: dict[str, list[float]] = {"one": [], "two": []}
    responses = {}
    for turn in range(args.turns + 1):
        for name in seconds:
            dist.barrier()
            start = time.perf_counter()
            if name == "two" or processes.is_main:
                responses[name] = score(SharedWork(processes if name == "two" else Processes()))
            dist.barrier()
            if turn:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    if processes.is_main:
        one, two = (statistics.median(times) for times in seconds.values())
        row = {
            "prompts": args.prompts,
            "one process s": round(one, 2),
            "two processes s": round(two, 2),
            "times as fast": round(one / two, 2),
            "same responses": responses["one"] == responses["two"],
        }
        report(f"Scoring a pool, {args.shape} shape, float32, cpu", [row], args.output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
