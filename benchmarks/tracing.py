"""
Forward pass with tracing against the plain forward pass, and against eager attention maps reduced to the same numbers.

    python benchmarks/tracing.py --shape smollm2-135m --dtype bfloat16 --output tracing.json

Time is the median of interleaved runs, memory the peak of a call beyond the weights, with the logits of all tokens and
with those of the last only. The weights are random, since only the shape matters. Traced are 30% of the heads in five
layers, as in a run.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import SHAPES, interleave, make_model, peak_memory, report

from pivottrace_trl import AttentionTracer
from pivottrace_trl.tracing.rollout_pass import choose_local_heads


LENGTHS = (512, 1024, 2048, 4096)
WINDOW, WAAD_WINDOW, NUM_SINKS = 16, 10, 4


def reduce_maps(attentions: tuple[torch.Tensor, ...], heads: dict[int, list[int]]) -> dict[str, torch.Tensor]:
    """The tracer's three signals from full attention maps, the way one would write it without the tracer."""
    num_tokens = attentions[0].shape[-1]
    position = torch.arange(num_tokens, device=attentions[0].device)
    distance = (position[:, None] - position[None, :]).clamp(min=0)
    is_far = (distance >= WINDOW) & (position >= NUM_SINKS)
    signals: dict[str, list[torch.Tensor]] = {"long_range_mass": [], "waad": [], "spans": []}
    for layer, chosen in heads.items():
        maps = attentions[layer][:, chosen].float()
        signals["long_range_mass"].append((maps * is_far).sum(-1))
        signals["waad"].append((maps * distance.clamp(max=WAAD_WINDOW)).sum(-1))
        signals["spans"].append((maps * distance).sum(-1))
    return {name: torch.cat(tensors, dim=1).mean(dim=1) for name, tensors in signals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--eager-up-to", type=int, default=4096, help="longest sequence for which maps are made")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    dtype = getattr(torch, args.dtype)
    model = make_model(args.shape, dtype, args.device)
    eager = make_model(args.shape, dtype, args.device, "eager")
    # Any 30% will do: spans of random weights mean nothing.
    layers = AttentionTracer(model).heads
    generator = torch.Generator().manual_seed(0)
    heads = choose_local_heads(
        {layer: torch.rand(model.config.num_attention_heads, generator=generator) for layer in layers}
    )
    tracer = AttentionTracer(model, heads, WINDOW, WAAD_WINDOW, NUM_SINKS)

    @torch.no_grad()
    def plain(input_ids, **options):
        return model(input_ids, use_cache=False, **options).logits

    @torch.no_grad()
    def traced(input_ids, **options):
        with tracer.capture(torch.ones_like(input_ids)) as capture:
            model(input_ids, use_cache=False, **options)
        return {name: capture.signal(name) for name in ("long_range_mass", "waad", "spans")}

    @torch.no_grad()
    def with_maps(input_ids):
        return reduce_maps(eager(input_ids, use_cache=False, output_attentions=True).attentions, heads)

    inputs = {n: torch.randint(1, model.config.vocab_size, (1, n), device=args.device) for n in args.lengths}

    def functions(length: int) -> dict[str, Callable]:
        chosen = (plain, traced, with_maps) if length <= args.eager_up_to else (plain, traced)
        return {function.__name__: partial(function, inputs[length]) for function in chosen}

    seconds = {}
    for length in args.lengths:
        seconds[length] = interleave(functions(length), args.repeats)
        print(length, seconds[length], flush=True)
    rows = []
    for length in args.lengths:
        memory = {name: peak_memory(function, args.device) for name, function in functions(length).items()}
        extra = memory["traced"] - memory["plain"]
        bare = {
            function: peak_memory(partial(function, inputs[length], logits_to_keep=1), args.device)
            for function in (plain, traced)
        }
        row = {
            "tokens": length,
            "plain s": round(seconds[length]["plain"], 4),
            "traced s": round(seconds[length]["traced"], 4),
            "traced / plain": round(seconds[length]["traced"] / seconds[length]["plain"], 3),
            "plain MiB": round(memory["plain"]),
            "traced MiB": round(memory["traced"]),
            "extra memory": f"{extra / memory['plain']:.1%}",
            "plain MiB, last logits": round(bare[plain]),
            "extra memory, last logits": f"{bare[traced] / bare[plain] - 1:.1%}",
        }
        if length <= args.eager_up_to:
            first, second = traced(inputs[length]), with_maps(inputs[length])
            error = (first["long_range_mass"] - second["long_range_mass"]).abs().max().item()
            row |= {
                "maps s": round(seconds[length]["with_maps"], 4),
                "maps / traced": round(seconds[length]["with_maps"] / seconds[length]["traced"], 2),
                "maps MiB": round(memory["with_maps"]),
                "extra memory, maps / traced": round((memory["with_maps"] - memory["plain"]) / max(extra, 1.0)),
                "largest difference in mass": f"{error:.1e}",
            }
        rows.append(row)
        print(rows[-1], flush=True)
    report(f"Tracing, {args.shape} shape, {args.dtype}, {args.device}", rows, args.output)


if __name__ == "__main__":
    main()
