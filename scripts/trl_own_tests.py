"""
Run TRL's own tests of GRPO twice, without and with a `PivotDensityCallback` on every trainer, and compare.

TRL's sdist and wheel hold no tests: they come from a checkout, best of the version that is installed.

    git clone --depth 1 --branch v1.16.0 https://github.com/huggingface/trl
    python scripts/trl_own_tests.py --tests trl --output results

The models and the data set that the tests load from the hub are replaced by local ones of the same architecture and
columns, in both runs alike. Trainers that the callback refuses run without it; what it said is listed. Arguments after
`--` go to pytest, `-m "not slow"` by default. The output folder gets `trl_own_tests.json` and `trl_own_tests.md`.
The exit code is 1 if a test that passes without the callback does not pass with it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl_stand_ins import make_data, make_models


HERE = Path(__file__).parent
MODULE = "tests/test_grpo_trainer.py"
GOOD = ("passed", "xpassed", "xfailed", "skipped")


def main() -> int:
    """Parse the command line, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, required=True, help="checkout of TRL")
    parser.add_argument("--output", type=Path, default=Path("trl_own_tests"), help="folder of the results")
    parser.add_argument("pytest_arguments", nargs="*", help="after `--`: arguments of pytest")
    arguments = parser.parse_args()
    if not (arguments.tests / MODULE).is_file():
        parser.error(f"--tests is {arguments.tests}, which has no {MODULE}. Give the folder of a checkout of TRL.")
    pytest_arguments = arguments.pytest_arguments or ["-m", "not slow"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Only the tests: the package beside them would hide the installed one.
        shutil.copytree(arguments.tests / "tests", folder / "tests")
        make_models(folder / "hub")
        make_data(folder / "data")
        runs = {way: _run(folder, way, pytest_arguments) for way in ("without", "with")}
    rows = compare(runs["without"]["tests"], runs["with"]["tests"])
    result = {
        "tests": _version(arguments.tests),
        "trl": version("trl"),
        "transformers": version("transformers"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "pytest_arguments": pytest_arguments,
        "seconds": {way: run["seconds"] for way, run in runs.items()},
        "summary": dict(Counter(row["verdict"] for row in rows)),
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "trl_own_tests.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "trl_own_tests.md").write_text(as_markdown(result))
    print(f"{result['summary']}: {arguments.output / 'trl_own_tests.md'}")
    return int(not rows or any(row["verdict"] == "broken" for row in rows))


def _version(checkout: Path) -> str:
    file = checkout / "VERSION"
    return file.read_text().strip() if file.is_file() else "unknown"


def _run(folder: Path, way: str, pytest_arguments: list[str]) -> dict[str, Any]:
    record = folder / f"{way}.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "STAND_INS": str(folder),
        "RECORD": str(record),
        **({"ATTACH": "1"} if way == "with" else {}),
    }
    print(f"--- {MODULE} {way} the callback", flush=True)
    command = [sys.executable, "-m", "pytest", MODULE, "-p", "trl_own_tests_plugin", "--rootdir=.", "--tb=short"]
    begin = time.monotonic()
    subprocess.run(
        [*command, "-c", os.devnull, f"--basetemp={folder / 'tmp'}", *pytest_arguments], cwd=folder, env=environment
    )
    if not record.is_file():
        raise RuntimeError(f"pytest wrote no record of the run {way} the callback: see its output above.")
    return {"seconds": round(time.monotonic() - begin), "tests": json.loads(record.read_text())}


def compare(without: dict[str, Any], attached: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Put the two runs beside each other.

    Args:
        without (`dict[str, Any]`):
            Test id -> record of the run without the callback.
        attached (`dict[str, Any]`):
            Test id -> record of the run with it.

    Returns:
        `list[dict[str, Any]]`: one row a test: `test`, `without`, `with`, `verdict`, `reason`. The verdict is `broken`
        if the test does as it should without the callback and not with it, `attached` or `refused` or `no trainer`
        where it passes with it, else the outcome without it.
    """
    rows = []
    for test, alone in without.items():
        both = attached.get(test, {"outcome": "not run", "reason": "", "attached": 0, "refused": []})
        reason = alone["reason"]
        if both["reason"] != reason:  # one failure may hide another: show both
            reason = f"without: {reason or 'passes'}; with: {both['reason'] or 'passes'}"
        if alone["outcome"] in GOOD and both["outcome"] != alone["outcome"]:
            verdict = "broken"
        elif alone["outcome"] != "passed":
            verdict = "failed in both" if alone["outcome"] == "failed" else alone["outcome"]
        elif both["refused"]:
            verdict, reason = "refused", both["refused"][0]
        else:
            verdict = "attached" if both["attached"] else "no trainer"
        name = test.split("::", 1)[1]
        rows.append(
            {"test": name, "without": alone["outcome"], "with": both["outcome"], "verdict": verdict, "reason": reason}
        )
    return rows


def as_markdown(result: dict[str, Any]) -> str:
    """
    Write the comparison as a page.

    Args:
        result (`dict[str, Any]`):
            What `main` writes as JSON.

    Returns:
        `str`
    """
    versions = ", ".join(f"{name} {result[name]}" for name in ("trl", "transformers", "torch"))
    lines = [
        "# TRL's own tests of GRPO, with the callback",
        "",
        f"Tests of TRL {result['tests']} against {versions}, Python {result['python']}; "
        f"{result['seconds']['without']} s without the callback, {result['seconds']['with']} s with it.",
        "",
        "| verdict | tests |",
        "|---|---|",
        *(f"| {verdict} | {count} |" for verdict, count in sorted(result["summary"].items())),
        "",
        "| test | without | with | verdict | why |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        reason = row["reason"].replace("|", "\\|").replace("\n", " ")[:300]
        lines.append(f"| `{row['test']}` | {row['without']} | {row['with']} | {row['verdict']} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
