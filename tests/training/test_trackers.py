"""The trackers that TRL recommends, for real, with the two lines."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest


# What is logged before the first step, by TRL and by the user's reward function, comes through like the rest.
EXPECTED = {"mean_length", "train/pivottrace/labels_bought", "train/pivottrace/vote_agreement", "train/loss"}


@pytest.fixture(scope="module")
def folder(tokenizer_path, tmp_path_factory):
    """Where two runs with a tracker each wrote to, in a process of their own."""
    folder = tmp_path_factory.mktemp("trackers")
    shutil.copytree(tokenizer_path, folder / "tokenizer")
    command = [sys.executable, str(Path(__file__).parent / "tracked_runs.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return folder


def test_trackio(folder):
    with closing(sqlite3.connect(folder / "trackio" / "huggingface.db")) as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
        (num_runs,) = database.execute("SELECT count(DISTINCT run_id) FROM metrics").fetchone()
    assert list(rows[0]) == ["profiling/Time taken: GRPOTrainer.transformers.generate"]
    assert set().union(*rows) >= EXPECTED
    assert num_runs == 1


def test_wandb(folder):
    assert set(json.loads((folder / "wandb.json").read_text())) >= EXPECTED
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
