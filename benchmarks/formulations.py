"""
What the tracer's statistics cost next to the cheapest source of a log-sum-exp, and how fast this machine multiplies.

    python benchmarks/formulations.py --output formulations.json

CPU only: three heads of 64 dimensions, as in one traced layer. `flash` is the call alone that returns a log-sum-exp;
the statistics would still have to be made from it.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from common import interleave, report

from pivottrace_trl.tracing.attention import attention_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    rows = []
    for length in args.lengths:
        query, key, value = torch.randn(3, 1, 3, length, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
        mask = torch.ones(1, length, dtype=torch.bool)
        flash = partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, query, key, value, 0.0, True)
        statistics = partial(attention_statistics, query, key, 0.125, mask)
        seconds = interleave({"statistics": statistics, "flash": flash}, args.repeats)
        rows.append({"tokens": length, **{f"{name} ms": round(1000 * value, 2) for name, value in seconds.items()}})
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
        seconds = interleave({"product": partial(torch.mm, matrix, matrix)}, args.repeats)
        rows[0][f"GFLOP/s, {str(dtype)[6:]}"] = round(2 * 4096**3 / seconds["product"] / 1e9)
    report("Statistics against a log-sum-exp from flash attention, CPU, float32", rows, args.output)


if __name__ == "__main__":
    main()
