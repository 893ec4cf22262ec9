"""
Seeded tiny runs whose results must not change: routes, order, labels, scores, losses and weights, to the last bit.

    python scripts/invariant.py --check    # compare with tests/data/invariant.json
    python scripts/invariant.py --record   # write that file anew

Record again only where a change is meant to change results (another formula, another threshold, another draw of random
numbers), in the commit that changes them, and let its message say which results changed and why. Code that is moved,
renamed or tidied up changes none. New versions of torch, transformers, trl or their kin may change results as well:
record again with them on a commit that passed with the old ones.

The runs stand in invariant_runs.py. All takes half a minute on one core and needs no network.
"""

import argparse
import itertools
import json
import math
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from invariant_runs import RUNS, run_all


RECORD = Path(__file__).resolve().parents[1] / "tests" / "data" / "invariant.json"
NUM_SHOWN = 20
# What `--check` returns where the record says nothing about this installation.
CANNOT_TELL = 3

# With another version of these, other results say nothing about this package.
LIBRARIES = ("accelerate", "datasets", "numpy", "peft", "scikit-learn", "scipy", "transformers", "trl")
# On another processor or build of torch, sums are rounded in another order. Single precision is good to 1e-7 an
# operation, of which a run of 12 steps makes 1e-5: so far apart were scores and losses with and without AVX2
# (`ATEN_CPU_CAPABILITY=default`). What is really different, such as another prompt in a batch, moves the third digit.
TOLERANCE = 1e-4
# Routes and order follow from the ranking of the scores. They are the same on every machine as long as scores that
# differ at all differ by far more than rounding does; `--record` refuses others.
SMALLEST_GAP = 1e-5


def describe_machine() -> dict[str, str]:
    """Where floats are the same to the last bit."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return {
        "torch": torch.__version__,
        "processor": next((line for line in lines if line.startswith("model name")), platform.processor()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def describe_libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def draw_random_numbers() -> list[float]:
    """What generation draws its tokens by: builds of torch differ in it."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.empty(64).exponential_(generator=generator), torch.randn(64, generator=generator)]
    return torch.cat(drawn)[::16].tolist()


def find_differences(expected: Any, found: Any, is_exact: bool, place: str = "") -> list[str]:
    """Where two outcomes differ; floats may be off by `TOLERANCE` unless `is_exact`."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [
            difference
            for key in expected
            if is_exact or key != "sha256"
            for difference in find_differences(
                expected[key], found[key], is_exact, f"{place} > {key}" if place else key
            )
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            difference
            for number, pair in enumerate(zip(expected, found, strict=True))
            for difference in find_differences(*pair, is_exact, f"{place}[{number}]")
        ]
    if isinstance(expected, float) and isinstance(found, float) and not is_exact:
        is_same = math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        is_same |= math.isnan(expected) and math.isnan(found)
    else:
        # Of floats, `repr` tells every bit, and that NaN is NaN.
        is_same = repr(expected) == repr(found)
    return [] if is_same else [f"{place}: {expected!r:.200} is recorded, but it is {found!r:.200}"]


def check_resuming(outcomes: dict[str, Any]) -> list[str]:
    """A run that was killed comes to what an undisturbed one does, to the last bit."""
    whole, (killed, resumed) = outcomes["grpo"], outcomes["grpo resumed"].values()
    differences = []
    for part in (killed, resumed):
        for routing in part["routings"]:
            expected = whole["routings"][routing["epoch"]]
            for key in ("routes", "order", "probes"):
                place = f"grpo resumed, epoch {routing['epoch']} > {key}"
                differences += find_differences(expected[key], routing[key], True, place)
    for key in ("final_scores", "bought", "losses", "weights"):
        differences += find_differences(whole[key], resumed[key], True, f"grpo resumed at its end > {key}")
    return differences


def find_near_ties(outcome: dict[str, Any], place: str) -> list[str]:
    """Rankings that rounding could turn round on another machine."""
    near = []
    for key, value in outcome.items():
        if isinstance(value, dict):
            near += find_near_ties(value, f"{place} > {key}")
        elif key == "routings":
            near += [tie for routing in value for tie in find_near_ties(routing, f"{place} > {routing['epoch']}")]
        elif key in ("scores", "final_scores"):
            scores = sorted(set(value))
            gap = min(after - before for before, after in itertools.pairwise(scores))
            if gap < SMALLEST_GAP * max(map(abs, scores)):
                near.append(f"{place} > {key}: two scores are only {gap:.2g} apart")
    return near


def write(record: dict[str, Any], path: Path) -> None:
    """JSON with a line for each thing, so that a change of the file shows which runs changed."""

    def lines(value: Any, indent: str = "") -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        inner = indent + "  "
        items = [f"{inner}{json.dumps(key)}: {lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"

    path.write_text(lines(record) + "\n")


def record(path: Path) -> int:
    outcomes = dict(run_all())
    problems = check_resuming(outcomes)
    problems += [tie for name, outcome in outcomes.items() for tie in find_near_ties(outcome, name)]
    if problems:
        print("Nothing is recorded:", *problems, sep="\n")
        return 1
    about = {"machine": describe_machine(), "libraries": describe_libraries(), "random": draw_random_numbers()}
    write({**about, "runs": outcomes}, path)
    print(f"{len(outcomes)} runs are recorded in {path}. Say in the commit which results changed, and why.")
    return 0


def check(path: Path) -> int:
    recorded = json.loads(path.read_text())
    others = find_differences(recorded["libraries"], describe_libraries(), True)
    others += find_differences(recorded["random"], draw_random_numbers(), False, "random numbers of this torch")
    if others:
        print(f"{path.name} says nothing about this installation. Install these, or record on a good commit:")
        print(*others, sep="\n")
        return CANNOT_TELL
    is_exact = recorded["machine"] == describe_machine()
    outcomes = {}
    differences = find_differences(list(recorded["runs"]), list(RUNS), True, "runs")
    for name, outcome in run_all():
        # As it is read from the file: tuples are lists there.
        outcomes[name] = json.loads(json.dumps(outcome))
        found = find_differences(recorded["runs"].get(name), outcomes[name], is_exact, name)
        print(f"{name}: {f'{len(found)} differences' if found else 'as recorded'}")
        differences += found
    differences += check_resuming(outcomes)
    print(*differences[:NUM_SHOWN], sep="\n")
    if differences:
        print(
            f"{len(differences)} results differ. If that is the purpose of the change, record them again with "
            "`python scripts/invariant.py --record` and say in the commit why; if it is not, the change is wrong."
        )
        return 1
    print(f"All {len(outcomes)} runs are as recorded, {'to the last bit' if is_exact else 'up to rounding'}.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare with the record")
    action.add_argument("--record", action="store_true", help="write the record anew")
    parser.add_argument("--path", type=Path, default=RECORD, help="the record; tests/data/invariant.json by default")
    arguments = parser.parse_args()
    return (record if arguments.record else check)(arguments.path)


if __name__ == "__main__":
    sys.exit(main())
