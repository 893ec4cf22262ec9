"""What becomes of pivots when layers, heads, window, event, threshold and normalisation vary.

python benchmarks/pivot_variants.py --study STUDY --model MODEL --output variants.json

STUDY is a folder that `pivottrace study` wrote: its greedy responses are traced again, all heads of layers from all
thirds of the network, once per window, and every combination is scored against the verdicts that are there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivottrace_trl import AttentionTracer, Rollout
from pivottrace_trl.pool import load_pool
from pivottrace_trl.progress import progress_bar
from pivottrace_trl.study.metrics import auroc, bootstrap
from pivottrace_trl.study.run import SETTINGS, SURVEY, survey_pool
from pivottrace_trl.tracing.batches import pad_batch, plan_batches
from pivottrace_trl.tracing.layers import find_attention_modules
from pivottrace_trl.tracing.pivots import signal_jumps
from pivottrace_trl.tracing.trace import load_traces


WINDOWS = (16, 64)
SHARE_OF_HEADS = 0.3


def head_signals(model, rollouts, pad_token_id, window):
    """Per response the long-range mass of every head, `(heads, tokens)`; and the mean span and layer of every head."""
    layers = list(find_attention_modules(model))
    third = len(layers) // 3
    chosen = dict.fromkeys(layers[1:third:2] + layers[third : 2 * third + 1 : 2] + layers[2 * third + 1 :: 2])
    tracer = AttentionTracer(model, heads=chosen, window=window)
    signals: list[np.ndarray] = [np.empty(0)] * len(rollouts)
    spans, num_tokens = np.zeros(1), 0
    with progress_bar(f"Window {window}", len(rollouts)) as advance, torch.no_grad():
        for indices in plan_batches(rollouts, range(len(rollouts)), 2048):
            batch = pad_batch(rollouts, indices, pad_token_id)
            with tracer.capture(batch.attention_mask, num_queries=batch.num_shown) as capture:
                model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1)
            masses = torch.cat([layer.long_range_mass for layer in capture.layers.values()], dim=1)
            all_spans = torch.cat([layer.spans for layer in capture.layers.values()], dim=1)
            mask = batch.response_mask[:, None, :]
            spans = spans + (all_spans * mask).sum(dim=(0, 2)).numpy()
            num_tokens += int(mask.sum())
            for row, index in enumerate(batch.indices):
                signals[index] = masses[row][:, batch.response_mask[row].bool()].numpy()
            advance(len(batch.indices))
    counts = [layer.spans.shape[1] for layer in capture.layers.values()]
    third_of_head = np.repeat([layers.index(layer) * 3 // len(layers) for layer in capture.layers], counts)
    return signals, spans / num_tokens, third_of_head


def head_sets(spans, thirds):
    """Which heads to average, by name."""
    sets: dict[str, np.ndarray] = {}
    for number, name in enumerate(("lower", "middle", "upper")):
        ranked = np.flatnonzero(thirds == number)[np.argsort(spans[thirds == number])]
        size = max(1, round(SHARE_OF_HEADS * len(ranked)))
        sets |= {f"{name} local": ranked[:size], f"{name} global": ranked[-size:], f"{name} all": ranked}
    return sets


def events(signal, event):
    """Size of the event at each token: a jump in either direction, or the height of a local peak."""
    if event == "jump":
        return signal_jumps(signal)
    padded = np.concatenate([[-np.inf], signal, [-np.inf]])
    return np.where((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]), signal, 0.0)


def variants(signals, entropies):
    """Scores by (event, threshold, normalisation)."""
    for event in ("jump", "peak"):
        sizes = [events(signal, event) for signal in signals]
        pooled = np.concatenate(sizes)
        thresholds = {
            "pool 80%": [np.quantile(pooled, 0.8)] * len(sizes),
            "pool 95%": [np.quantile(pooled, 0.95)] * len(sizes),
            "response mean + 1 std": [size.mean() + size.std() for size in sizes],
        }
        for rule, bounds in thresholds.items():
            marks = [size > bound for size, bound in zip(sizes, bounds)]
            yield event, rule, "count", np.array([m.sum() for m in marks], float)
            yield event, rule, "per token", np.array([m.mean() for m in marks])
            yield event, rule, "sum of sizes", np.array([s[m].sum() for s, m in zip(sizes, marks)])
            yield event, rule, "sum of entropy", np.array([e[m].sum() for e, m in zip(entropies, marks)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--prompt-column", default="question")
    parser.add_argument("--limit", type=int, help="trace the first responses only")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    settings = json.loads((args.study / SURVEY / SETTINGS).read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    dataset = load_pool(args.dataset, limit=settings["num_prompts"])
    (greedy,) = survey_pool(
        model,
        tokenizer,
        dataset[args.prompt_column],
        args.study / SURVEY,
        num_samples=0,
        max_completion_length=settings["max_completion_length"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
    )
    is_wrong = pq.read_table(args.study / "scores.parquet")["is_wrong"].to_numpy()
    traces = load_traces(args.study / "traces.parquet")
    shown = [i for i, trace in enumerate(traces) if len(trace) > 1][: args.limit]
    rollouts: list[Rollout] = [greedy.rollouts[i] for i in shown]
    entropies, is_wrong = [traces[i].entropy for i in shown], is_wrong[shown]
    rows = []
    for window in WINDOWS:
        signals, spans, thirds = head_signals(model, rollouts, tokenizer.pad_token_id or 0, window)
        for heads, chosen in head_sets(spans, thirds).items():
            means = [signal[chosen].mean(axis=0) for signal in signals]
            for event, rule, normalisation, scores in variants(means, entropies):
                rows.append([window, heads, event, rule, normalisation, auroc(scores, is_wrong), scores])
    rows.sort(key=lambda row: -row[5])
    names = ["window", "heads", "event", "threshold", "normalisation"]
    table = Table(title=f"{len(rows)} variants on {len(shown)} responses, {is_wrong.mean():.0%} of them wrong")
    for name in [*names, "AUROC"]:
        table.add_column(name)
    for row in [*rows[:8], *rows[-2:]]:
        table.add_row(*map(str, row[:5]), str(bootstrap(auroc, row[6], is_wrong)))
    Console().print(table)
    marginal = {
        name: {
            str(value): float(np.mean([row[5] for row in rows if row[place] == value]))
            for value in dict.fromkeys(row[place] for row in rows)
        }
        for place, name in enumerate(names)
    }
    total = auroc(np.array([entropy.sum() for entropy in entropies]), is_wrong)
    result = {
        "study": args.study.name,
        "num_responses": len(shown),
        "total_entropy": total,
        "mean_auroc": marginal,
        "variants": [dict(zip([*names, "auroc"], [*row[:5], round(row[5], 4)])) for row in rows],
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(marginal, indent=1), f"total entropy {total:.3f}", sep="\n")


if __name__ == "__main__":
    main()
