"""
What scoring adds to generation: triage of a pool against the same model's own `generate` on the same prompts.

    python benchmarks/triage_pool.py --model SmolLM2-135M-Instruct --dataset gsm8k_train.jsonl --output triage.json

Generates one response a prompt, then scores them with the default estimator, then passes the same batches through the
model without tracer and entropy, which is the least that any scoring pass costs. Without `--model`, random weights of
a known shape answer random prompts.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import SHAPES, make_model, report, synchronize
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pivottrace_trl import PoolScorer, trace_rollouts
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.estimators import PivotEntropy
from pivottrace_trl.pool import load_pool
from pivottrace_trl.tracing.batches import pad_batch, plan_batches
from pivottrace_trl.tracing.rollouts import even_batches, generate_rollouts, transformers_generator


def timed(function):
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--model", help="folder of a model, in place of random weights")
    parser.add_argument("--dataset", help="questions for the model")
    parser.add_argument("--prompt-column", default="question")
    parser.add_argument("--num-prompts", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model or MODEL_PATH)
    model: Any
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
        model = model.to(args.device).eval()
        questions = load_pool(args.dataset)[args.prompt_column][: args.num_prompts]
        chats = [[{"role": "user", "content": question}] for question in questions]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    else:
        model = make_model(args.shape, getattr(torch, args.dtype), args.device)
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(60, 140, (args.num_prompts,), generator=generator).tolist()
        prompts = [torch.randint(4, 49152, (length,), generator=generator).tolist() for length in lengths]
    config = GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id if args.model else None,
        pad_token_id=tokenizer.pad_token_id,
    )
    generate = transformers_generator(model, tokenizer, config)
    generate(prompts[:2])  # warm-up
    batches = even_batches(prompts, args.batch_size)
    rollouts, generating = timed(lambda: generate_rollouts(lambda batch, _: generate(batch), prompts, batches))
    scorer = PoolScorer(PivotEntropy(), tokenizer.pad_token_id)

    def score() -> None:
        scorer.fit(*trace_rollouts(model, rollouts, tokenizer.pad_token_id, token_budget=args.token_budget))

    _, scoring = timed(score)

    @torch.no_grad()
    def pass_only():
        for indices in plan_batches(rollouts, range(len(rollouts)), args.token_budget):
            batch = pad_batch(rollouts, indices, tokenizer.pad_token_id, model.device)
            model(batch.input_ids, batch.attention_mask, use_cache=False, logits_to_keep=batch.num_shown)

    _, passing = timed(pass_only)
    num_tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    row = {
        "prompts": len(prompts),
        "prompt tokens": sum(map(len, prompts)),
        "response tokens": num_tokens,
        "generate tokens/s": round(num_tokens / generating),
        "triage tokens/s": round(num_tokens / (generating + scoring)),
        "generate s": round(generating, 1),
        "score s": round(scoring, 1),
        "pass alone s": round(passing, 1),
        "scoring adds": f"{scoring / generating:.1%}",
        "of which pass alone": f"{passing / generating:.1%}",
    }
    name = Path(args.model).name if args.model else f"{args.shape} shape"
    report(f"Triage of a pool, {name}, {args.dtype}, {args.device}", [row], args.output)


if __name__ == "__main__":
    main()
