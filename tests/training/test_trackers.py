"""The trackers that TRL recommends, for real, with the two lines."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import types
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from transformers.integrations import TensorBoardCallback

from pivottrace_trl import TriageConfig
from pivottrace_trl.processes import Processes
from pivottrace_trl.report.trackers import Trackers

from ..conftest import attach, make_pool


ROOT = Path(__file__).parents[2]
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
    (media,) = [row for row in rows if "train/pivottrace/routes" in row]
    for name in ("route_flow", "calibration"):
        path = folder / "trackio" / "media" / media[f"train/pivottrace/{name}"]["file_path"]
        assert path.read_bytes().startswith(b"\x89PNG") and media["train/global_step"] == 0
    table = media["train/pivottrace/routes"]["_value"]
    assert len(table) == 16 and {row["route"] for row in table} <= {"discard", "weak", "annotate"}
    assert sum(row["label_source"] == "bought" for row in table) == 8
    # Questions are there because the table of completions is; what is not known is blank.
    assert {row["question"] for row in table} == {f"{i}+{i % 7}=?" for i in range(16)}
    assert {row["agreement"] for row in table} == {None}
    # The trainer's own table comes with its own logs, and not once more, empty, with our scalars.
    assert [len(row["completions"]["_value"]) for row in rows if "completions" in row] == [8, 8, 8]


def test_trackio_is_alerted_once(folder):
    with closing(sqlite3.connect(folder / "trackio" / "huggingface.db")) as database:
        alerts = database.execute("SELECT title, text, level FROM alerts").fetchall()
    assert alerts == [("PivotTrace: pseudo-labels are paused", "Collapse: the policy pleases its own votes", "warn")]


def test_wandb(folder):
    assert set(json.loads((folder / "wandb.json").read_text())) >= EXPECTED
    (run,) = (folder / "wandb").glob("offline-run-*")
    section = run / "files" / "media"
    assert len(list(section.glob("images/train/pivottrace/route_flow_*.png"))) == 1
    assert len(list(section.glob("images/train/pivottrace/calibration_*.png"))) == 1
    (path,) = section.glob("table/train/pivottrace/routes_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"][:4] == ["prompt_id", "question", "route", "label_source"] and len(table["data"]) == 16
    # Records are kept as they are sent: the title of an alert stands in them as often as there are alerts.
    (records,) = run.glob("*.wandb")
    assert records.read_bytes().count(b"PivotTrace: pseudo-labels are paused") == 1


class Writer:
    """Stands in for the writer of TensorBoard."""

    def __init__(self, error=None):
        self.images, self.error = {}, error

    def add_image(self, tag, pixels, step, dataformats):
        if self.error is not None:
            raise self.error
        self.images.setdefault(tag, []).append((step, pixels.shape, dataformats))

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def board(trainer, writer, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=None))
    trainer.add_callback(TensorBoardCallback(writer))


@pytest.mark.pictures
def test_tensorboard_gets_pictures_at_each_routing(make_trainer, monkeypatch):
    trainer, writer = make_trainer(make_pool(16), num_train_epochs=2), Writer()
    board(trainer, writer, monkeypatch)
    attach(trainer)
    trainer.train()
    assert set(writer.images) == {"train/pivottrace/route_flow", "train/pivottrace/calibration"}
    for shown in writer.images.values():
        assert [step for step, *_ in shown] == [0, trainer.state.global_step // 2]
        assert all(shape[2] == 3 and min(shape) > 2 and form == "HWC" for _, shape, form in shown)


@pytest.mark.pictures
def test_routes_that_stay_are_shown_once(make_trainer, monkeypatch):
    trainer, writer = make_trainer(make_pool(16), num_train_epochs=2), Writer()
    board(trainer, writer, monkeypatch)
    attach(trainer, config=TriageConfig(reroutes=False))
    trainer.train()
    assert [step for step, *_ in writer.images["train/pivottrace/route_flow"]] == [0]


@pytest.mark.pictures
def test_a_tracker_that_fails_is_told_of_once_and_training_goes_on(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(make_pool(16), num_train_epochs=3)
    board(trainer, Writer(ConnectionError("no route to host")), monkeypatch)
    attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 24
    told = [record.message for record in caplog.records if "did not take pictures" in record.message]
    assert len(told) == 1 and told[0].startswith("TensorBoard") and "ConnectionError: no route to host" in told[0]


def test_only_the_main_process_talks_to_trackers(make_trainer):
    trainer = make_trainer()
    callback = attach(trainer)
    other = Trackers(trainer, types.SimpleNamespace(is_main=False), lambda rows: [])
    trainer.callback_handler.callbacks = None  # which it must not look at
    other.show(callback.router, {})
    other.alert("Collapse")


def test_a_table_of_many_prompts_is_thinned_evenly_and_holds_no_question_by_default(make_trainer):
    trainer = make_trainer(make_pool(2500))
    router = attach(trainer).router
    router.update_scores(np.arange(2500), np.random.default_rng(0).permutation(2500), np.zeros(2500))
    table = Trackers(trainer, Processes(), lambda rows: [])._routes(router)
    assert len(table) == 1000 and "question" not in table
    assert table["score"].is_monotonic_decreasing and table["score"].iloc[0] == 2499 and table["score"].iloc[-1] == 0
    assert set(table["label_source"]) == {"none"} and set(table["pass_rate"]) == {None}


def test_the_page_lists_what_is_logged_and_nothing_else(make_trainer):
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    section = page.split("## What is logged")[1].split("\n## ")[0]

    def often(completions, solution, **kwargs):
        return [float(len(completion[0]["content"]) % 3 > 0) for completion in completions]

    trainer = make_trainer(make_pool(24), reward_funcs=often, num_train_epochs=2)
    # So that every route has prompts.
    config = TriageConfig(discard_ratio=0.25, min_agreement=0.5)
    attach(trainer, 12, buy="after", config=config)
    trainer.train()
    trainer.evaluate(make_pool(60).select(range(40, 48)))
    logged = {name for entry in trainer.state.log_history for name in entry if "pivottrace" in name}
    rows = "\n".join(line for line in section.splitlines() if line.startswith("| `pivottrace/"))
    assert logged == set(re.findall(r"`(pivottrace/\w+)`", rows))
    # One section in a tracker: one prefix, and nothing below it.
    assert all(re.fullmatch(r"pivottrace/[a-z_]+", name) for name in logged)
