"""
The tracer on real weights against eager attention maps reduced to the same numbers.

    python benchmarks/exactness.py --dataset gsm8k_train.jsonl --output exactness.json MODEL ...

Eight prompts with their answers in one padded batch, all heads of the layers that are traced by default. "float64" is
the model with an attention function that works in float64 on the queries and keys it is given: its maps are exact, and
the tracer on that model must agree with them. "eager" is the attention of transformers, which rounds the logits to the
model's precision.
"""

import argparse
from pathlib import Path

import torch
from common import report
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from pivottrace_trl import AttentionTracer
from pivottrace_trl.pool import load_pool


NAMES = ("long_range_mass", "waad", "spans")
WINDOW, WAAD_WINDOW, NUM_SINKS = 16, 10, 4


def reference(maps: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The statistics by their definitions, in float64, from full attention maps."""
    maps, mask = maps.double(), mask.bool()
    position = torch.arange(mask.shape[1])
    distance = (position[:, None] - position[None, :]).clamp(min=0)
    is_sink = mask & (mask.long().cumsum(1) <= NUM_SINKS)
    is_far = (distance >= WINDOW) & ~is_sink[:, None, None, :]
    maps = maps * (mask[:, None, :, None] & mask[:, None, None, :])
    return {
        "long_range_mass": (maps * is_far).sum(-1),
        "waad": (maps * distance.clamp(max=WAAD_WINDOW)).sum(-1),
        "spans": (maps * distance).sum(-1),
    }


def attend_in_float64(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention with nothing rounded; the layout of transformers' own `eager_attention_forward`."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(groups, dim=1) for tensor in (key, value))
    logits = query.double() @ key.transpose(2, 3) * scaling + attention_mask.double()
    weights = logits.softmax(dim=-1)
    return (weights @ value).to(query.dtype).transpose(1, 2).contiguous(), weights


@torch.no_grad()
def trace(model, inputs) -> tuple[dict[int, dict[str, torch.Tensor]], AttentionTracer]:
    tracer = AttentionTracer(model, None, WINDOW, WAAD_WINDOW, NUM_SINKS)
    with tracer.capture(inputs["attention_mask"]) as capture:
        model(**inputs, use_cache=False)
    return {layer: vars(statistics) for layer, statistics in capture.layers.items()}, tracer


def difference(first, second, name: str) -> str:
    return f"{max((first[layer][name] - second[layer][name]).abs().max().item() for layer in first):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    AttentionInterface.register("float64", attend_in_float64)
    AttentionMaskInterface.register("float64", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    pool = load_pool(args.dataset)
    texts = [
        f"{question}\n{answer}" for question, answer in zip(pool["question"][:8], pool["answer"][:8], strict=True)
    ]
    rows = []
    for path in args.models:
        tokenizer = AutoTokenizer.from_pretrained(path)
        inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
        for dtype in (torch.float32, torch.bfloat16):
            errors: dict[str, dict[str, str]] = {}
            for implementation in ("float64", "eager"):
                model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=implementation)
                with torch.no_grad():
                    maps = model.eval()(**inputs, use_cache=False, output_attentions=True).attentions
                traced, tracer = trace(model, inputs)
                expected = {layer: reference(maps[layer], inputs["attention_mask"]) for layer in traced}
                errors[implementation] = {name: difference(traced, expected, name) for name in NAMES}
            row = {
                "model": path.name,
                "dtype": str(dtype)[6:],
                "layers": " ".join(map(str, tracer.heads)),
                "left out": len(tracer.skipped_layers),
                "tokens": int(inputs["attention_mask"].sum()),
            }
            row |= {f"{name} against {kind}": errors[kind][name] for kind in errors for name in NAMES}
            rows.append(row)
    report("Exactness on real weights, CPU", rows, args.output)


if __name__ == "__main__":
    main()
