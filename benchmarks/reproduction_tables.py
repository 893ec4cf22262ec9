"""
Tables of docs/reproduction.md, as Markdown, from the `report.json` of `pivottrace report`.

    python benchmarks/reproduction_tables.py docs/results/reproduction/tiny.json
"""

import argparse
import json
from pathlib import Path


def share(interval: dict | None, signed: bool = False) -> str:
    if interval is None:
        return "-"
    form = "{:+.1%}" if signed else "{:.1%}"
    if interval["low"] is None:
        return form.format(interval["mean"])
    return f"{form} ({form} to {form})".format(interval["mean"], interval["low"], interval["high"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    args = parser.parse_args()
    for name, arms in json.loads(args.report.read_text()).items():
        print(f"\n{name}\n" if name else "")
        print(
            "| arm | labels | final accuracy | against full supervision | against Random | mean over the run, against "
            "full supervision | full's final accuracy at step | times as soon |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for arm in arms:
            step = "not reached" if arm["goal_step"] is None else f"{arm['goal_step']} of {arm['steps'][-1]}"
            speed = "-" if arm["speed_up"] is None else f"{arm['speed_up']:.2f}"
            print(
                f"| {arm['arm']} | {arm['labels']['mean']:.0f} | {share(arm['final'])} | "
                f"{share(arm['against_reference'], True)} | {share(arm['against_random'], True)} | "
                f"{share(arm['area_against_reference'], True)} | {step} | {speed} |"
            )


if __name__ == "__main__":
    main()
