"""
Keep what the runs of docs/reproduction.md logged: one row a run, step and metric, as Parquet.

    python benchmarks/reproduction_history.py runs --output docs/results/reproduction/tiny-history.parquet
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pivottrace_trl.report.record import find_runs


METRICS = (
    "eval_reward", "eval_num_tokens", "num_tokens", "reward", "frac_reward_zero_std", "completions/mean_length",
    "grad_norm", "entropy",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = [
        {"arm": run.arm, "seed": run.seed, "step": entry["step"], "metric": name, "value": float(value)}
        for run in find_runs(args.runs)
        for entry in run.log_history
        for name, value in entry.items()
        if (name in METRICS or name.startswith("pivottrace/")) and value is not None
    ]
    pq.write_table(pa.Table.from_pylist(rows), args.output, compression="zstd")
    print(f"{len(rows)} rows in {args.output}")


if __name__ == "__main__":
    main()
