"""
Triage of a pool of a million scored prompts: ranking, probe set, calibration, routes.

    python benchmarks/triage_scale.py --output triage_scale.json

Memory is the growth of the process's largest resident size beyond the pool itself.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from common import report

from pivottrace_trl.routing import Evidence, assign_routes, choose_probes


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=1_000_000)
    parser.add_argument("--num-probes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    scores = rng.gamma(2.0, size=args.num_prompts)
    evidence = Evidence.empty(args.num_prompts)
    before, seconds = peak_mib(), []
    for _ in range(args.repeats):
        start = time.perf_counter()
        probes = choose_probes(scores, args.num_probes)
        evidence.is_labelled[probes] = True
        evidence.pass_rate[probes] = rng.random(args.num_probes) < np.exp(-scores[probes] / 3)
        evidence.num_verified[probes] = 1
        result = assign_routes(scores, evidence, int(0.293 * args.num_prompts) - args.num_probes)
        seconds.append(time.perf_counter() - start)
    row = {
        "prompts": args.num_prompts,
        "seconds": round(statistics.median(seconds), 2),
        "extra MiB": round(peak_mib() - before),
        "labels to buy": len(result.to_buy),
        **result.counts(),
    }
    report("Triage of scored prompts, CPU", [row], args.output)


if __name__ == "__main__":
    main()
