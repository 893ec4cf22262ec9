"""
How well did a triage rank a labelled pool? Reads folders that `pivottrace triage` wrote, and ALL labels, which is fine
for measuring and for nothing else.

    python benchmarks/triage_quality.py --dataset gsm8k_train.jsonl --label-column answer --output results.json RUN ...

Prints one table as Markdown and writes JSON. Needs scikit-learn: pip install "pivottrace-trl[bench]".
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from pivottrace_trl.answers import is_correct
from pivottrace_trl.loading import load_pool


NUM_BOOTSTRAPS = 2000
FORKING_ENTROPY = 0.5  # nats


def auroc(is_wrong: np.ndarray, score: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """AUROC of "high score" for "wrong answer", with a 95% bootstrap interval over prompts."""
    rng = np.random.default_rng(seed)
    samples = []
    while len(samples) < NUM_BOOTSTRAPS:
        chosen = rng.integers(0, len(score), len(score))
        if 0 < is_wrong[chosen].sum() < len(score):
            samples.append(roc_auc_score(is_wrong[chosen], score[chosen]))
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(roc_auc_score(is_wrong, score)), float(low), float(high)


def measure(run: Path, labels: list[str]) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    routes = pq.read_table(run / "routes.parquet").to_pydict()
    entropies = [np.array(entropy) for entropy in pq.read_table(run / "traces.parquet")["entropy"].to_pylist()]
    answers = zip(routes["response"], routes["row"], strict=True)
    is_wrong = np.array([not is_correct(response, labels[row]) for response, row in answers])
    scores = {
        "pivot_entropy": np.array(routes["score"]),
        "pivot_density": np.nan_to_num(np.array(routes["pivot_density"], float)),
        "num_pivots": np.array(routes["num_pivots"]),
        "length": np.array(routes["num_tokens"]),
        "total_entropy": np.array([entropy.sum() for entropy in entropies]),
        "forking_tokens": np.array([(entropy > FORKING_ENTROPY).sum() for entropy in entropies]),
    }
    by_route = {}
    for name in ("discard", "weak", "annotate"):
        is_here = np.array(routes["route"]) == name
        by_route[name] = {
            "prompts": int(is_here.sum()),
            "wrong": float(is_wrong[is_here].mean()) if is_here.any() else None,
        }
    return {
        **summary,
        "run": run.name,
        "wrong": float(is_wrong.mean()),
        "by_route": by_route,
        "auroc": {name: auroc(is_wrong, score) for name, score in scores.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--label-column", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    labels = load_pool(args.dataset)[args.label_column]
    results = [measure(run, labels) for run in args.runs]
    args.output.write_text(json.dumps(results, indent=1) + "\n")

    names = list(results[0]["auroc"])
    header = ["run", "wrong", "discard / weak / annotate", "generation", "tracing", "peak memory", *names]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for result in results:
        seconds = result["seconds"]
        cells = [
            result["run"],
            f"{result['wrong']:.1%}",
            " / ".join(str(result["by_route"][route]["prompts"]) for route in ("discard", "weak", "annotate")),
            f"{seconds['generation']:.0f} s",
            f"{seconds['tracing']:.0f} s",
            f"{result['peak_memory_gb']:.1f} GiB",
            *(f"{value:.3f} ({low:.2f}-{high:.2f})" for value, low, high in result["auroc"].values()),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
