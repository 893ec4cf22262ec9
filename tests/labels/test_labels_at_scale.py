"""A million prompts asked for, exported, answered and opened again, in time and memory that grow with their number."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "labels_scale.py"
STEPS = ("write the pool", "ask for all", "ask again, a tenth less", "export csv", "import csv", "status")
STEPS += ("import csv again", "import csv, own labels", "open with all answers")


def test_a_row_takes_no_longer_among_more(tmp_path):
    benchmark = runpy.run_path(str(BENCHMARK))
    seconds = {name: [] for name in STEPS}
    # Twice the larger one: what else the machine does slows one of them down, but seldom both.
    for number, num_prompts in enumerate((1_000, 10_000, 10_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        benchmark["make_pool"](folder, num_prompts, "numbers")
        for name in STEPS:
            start = time.process_time()
            assert benchmark["STEPS"][name](folder) == num_prompts
            seconds[name].append(time.process_time() - start)
    # Ten times the rows: a step that compared each with all others would take a hundred times as long.
    grown = {name: min(large) / small for name, (small, *large) in seconds.items()}
    assert max(grown.values()) < 25, (grown, seconds)


@pytest.mark.slow
def test_a_million_labels(tmp_path):
    output = tmp_path / "labels_scale.json"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, BENCHMARK, "--num-formulas", "0", "--folder", tmp_path, "--output", output]
    subprocess.run(list(map(str, command)), env=environment, check=True)
    for row in json.loads(output.read_text())["rows"]:
        assert row["GB"] < 2.0, row
        # Of the processor: what else a machine does, and how fast its disk is, says nothing about us.
        assert row["CPU seconds"] < 200.0, row
