"""Interrupted runs against undisturbed ones."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers.trainer import TRAINER_STATE_NAME

from pivottrace_trl import TriageConfig, pool_ids
from pivottrace_trl.files import PRIVATE_FOLDER
from pivottrace_trl.processes import BatchFolder, SharedWork
from pivottrace_trl.report import run as report_module
from pivottrace_trl.report.record import find_runs
from pivottrace_trl.training.checkpoint import find_checkpoint

from . import killed_runs
from .conftest import attach, make_pool


@pytest.mark.parametrize("num_kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_come_to_what_an_undisturbed_one_does(num_kills, tokenizer_path, tmp_path):
    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    outcome = subprocess.run(
        [sys.executable, str(Path(killed_runs.__file__)), str(tmp_path), str(num_kills)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    undisturbed, *others = sorted(tmp_path.glob("run-*"))
    expected = json.loads((undisturbed / "outcome.json").read_text())
    probes, _, second, last = expected["num_bought"]
    assert len(set(expected["routes"])) == 3 and 0 < probes < second < last  # labels are bought in later epochs too
    order = dict(read_order(undisturbed))
    for run in others:
        assert json.loads((run / "outcome.json").read_text()) == expected, run
        assert all(rows == order[step] for step, rows in read_order(run)), run
    killed = Counter(json.loads((tmp_path / "killed.json").read_text()))
    assert killed.total() >= num_kills
    if num_kills == 50:
        assert set(killed) == set(killed_runs.PHASES) and min(killed.values()) >= 3, killed


def read_order(run: Path) -> list[tuple[int, list[int]]]:
    return [tuple(json.loads(line)) for line in (run / "order.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    pass


def count_generated(trainer, stop_after=None):
    """Prompts of each call of the generation engine; the call after `stop_after` of them fails."""
    sizes, original = [], trainer._generate_single_turn

    def generate(prompt_ids, *rest):
        if len(sizes) == stop_after:
            raise Interrupted
        sizes.append(len(prompt_ids))
        return original(prompt_ids, *rest)

    trainer._generate_single_turn = generate
    return sizes


def test_scoring_goes_on_where_it_stopped(make_trainer, tmp_path):
    options = {"max_steps": 1, "per_device_train_batch_size": 4}  # four batches of 16 prompts
    whole = make_trainer(make_pool(64), output_dir=str(tmp_path / "whole"), **options)
    expected = attach(whole)
    whole.train()
    parts = {"output_dir": str(tmp_path / "parts"), **options}
    interrupted = make_trainer(make_pool(64), **parts)
    attach(interrupted)
    assert count_generated(interrupted, stop_after=3) == []
    with pytest.raises(Interrupted):
        interrupted.train()
    again = make_trainer(make_pool(64), **parts)
    callback = attach(again)
    sizes = count_generated(again)
    again.train()
    assert sizes == [16, 4]  # one batch was missing; the other call is that of the training step
    assert (callback.router.routes == expected.router.routes).all()
    assert (callback.router.scores == expected.router.scores).all()
    assert callback.num_scoring_tokens == expected.num_scoring_tokens
    # A third run finds everything, and another seed nothing.
    for seed, missing in ((7, []), (8, [16] * 4)):
        other = make_trainer(make_pool(64), **{**parts, "seed": seed})
        attach(other)
        sizes = count_generated(other)
        other.train()
        assert sizes == [*missing, 4]


def test_tracing_goes_on_where_it_stopped(tmp_path):
    made = []

    def make(number):
        if len(made) == 3:
            raise Interrupted
        made.append(number)
        return [number, number]

    def to_table(values):
        return pa.table({"v": values})

    def run():
        folder = BatchFolder(tmp_path, {"model": "a"})
        return dict(SharedWork(folder=folder).run("squares", 5, make, to_table, lambda t: t["v"].to_pylist()))

    with pytest.raises(Interrupted):
        run()
    (tmp_path / "squares-000001.parquet").write_bytes(b"cut sh")
    made.clear()
    assert run() == {number: [number, number] for number in range(5)}
    assert made == [1, 3, 4]  # what cannot be read is made again
    BatchFolder(tmp_path, {"model": "b"})
    assert [path.name for path in tmp_path.iterdir()] == ["made_from.json"]
    with pytest.raises(ValueError, match="lacks squares-000000.parquet"):
        work = SharedWork(folder=BatchFolder(tmp_path), is_finished=True)
        list(work.run("squares", 1, make, to_table, lambda t: t["v"].to_pylist()))


SAVING = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 12}


def test_a_moved_output_dir(make_trainer, tmp_path):
    trainer = make_trainer(**SAVING, output_dir=str(tmp_path / "here"))
    expected = attach(trainer)
    trainer.train()
    expected.detach()  # as when its process ends: a folder belongs to one run
    shutil.move(tmp_path / "here", tmp_path / "there")
    for checkpoint in find_checkpoint(tmp_path / "there", True).parent.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-12":
            shutil.rmtree(checkpoint)
    resumed = make_trainer(**SAVING, output_dir=str(tmp_path / "there"))
    callback = attach(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert (callback.router.routes == expected.router.routes).all()
    assert (callback.router.scores == expected.router.scores).all()
    assert callback.ledger.bought_ids == expected.ledger.bought_ids
    assert callback.summary() == expected.summary()


def test_checkpoints_of_another_pool_or_seed_are_refused(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    attach(trainer)
    trainer.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    other_pool = make_trainer(make_pool(40), max_steps=4, output_dir=str(tmp_path / "other"))
    attach(other_pool)
    with pytest.raises(ValueError, match="was saved for pool .*Resume with the dataset of that run"):
        other_pool.train(resume_from_checkpoint=checkpoint)
    other_seed = make_trainer(max_steps=4, output_dir=str(tmp_path / "another"), seed=8)
    attach(other_seed)
    with pytest.raises(ValueError, match="with seed 7, but this one has seed 8.*`seed=7`"):
        other_seed.train(resume_from_checkpoint=checkpoint)


def test_rows_in_another_order_are_refused(make_trainer, tmp_path):
    """Routes, the sampler's order and the first responses go by rows: each would belong to another prompt."""
    pool = make_pool(32)
    trainer = make_trainer(pool, max_steps=2, save_strategy="steps", save_steps=2)
    attach(trainer)
    trainer.train()
    shuffled_pool = pool.shuffle(seed=1)
    shuffled = make_trainer(shuffled_pool, max_steps=4)
    attach(shuffled)
    with pytest.raises(ValueError, match="same prompts in another order.*Shuffle with the seed of that run"):
        shuffled.train(resume_from_checkpoint=True)
    # As the message says: sorted by what the checkpoint holds, it goes on.
    ids = pq.read_table(tmp_path / "run" / "checkpoint-2" / "pivottrace.parquet")["prompt_id"].to_pylist()
    place = {identity: row for row, identity in enumerate(pool_ids(shuffled_pool))}
    resumed = make_trainer(shuffled_pool.select([place[identity] for identity in ids]), max_steps=4)
    attach(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_a_checkpoint_that_was_cut_short_is_passed_over(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=6, save_strategy="steps", save_steps=2)
    attach(trainer)
    trainer.train()
    run = tmp_path / "run"
    state = (run / "checkpoint-6" / TRAINER_STATE_NAME).read_text()
    (run / "checkpoint-6" / TRAINER_STATE_NAME).write_text(state[: len(state) // 2])
    (run / "checkpoint-4" / TRAINER_STATE_NAME).unlink()
    (run / "checkpoint-8").mkdir()
    assert find_checkpoint(run, True) == run / "checkpoint-2"
    resumed = make_trainer(max_steps=6)
    attach(resumed)
    with pytest.raises(ValueError, match="checkpoint-4 was cut short.*resume_from_checkpoint=True"):
        resumed.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-6" / TRAINER_STATE_NAME).unlink()
    assert find_checkpoint(run, True) is None  # from the beginning
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty", True)


def test_labels_of_an_earlier_run_are_known_from_the_start(make_trainer):
    """A run that came to its end is not taken for an interrupted one: what it bought is evidence for the next."""
    trainer = make_trainer(num_train_epochs=2)
    first = attach(trainer)
    trainer.train()
    bought = first.ledger.bought_ids
    first.detach()
    trainer = make_trainer(max_steps=1)
    second = attach(trainer)
    trainer.train()
    assert bought <= {second.router.prompt_ids[row] for row in range(32) if second.router.label(row)}


def test_labels_bought_later_are_not_known_to_a_run_that_goes_back(make_trainer, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 8, "output_dir": str(tmp_path / "run")}
    config = TriageConfig(probe_size=8, tau_high=0.8, tau_low=0.8, min_agreement=0.5)
    options["reward_funcs"], triage = killed_runs.brief_reward, {"annotation_budget": 0.9, "config": config}
    trainer = make_trainer(**options)
    attach(trainer, **triage)
    trainer.train()
    known = {}
    for step in (8, 24):
        resumed = make_trainer(**{**options, "max_steps": step + 1, "save_strategy": "no"})
        callback = attach(resumed, **triage)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        known[step] = sum(callback.router.label(row) is not None for row in range(32))
        callback.detach()
    assert 8 <= known[8] < known[24] == callback.summary()["annotated"]


def test_routings_of_an_earlier_longer_run_are_not_read_as_those_of_the_next(make_trainer, tmp_path):
    folder = tmp_path / "run" / PRIVATE_FOLDER
    for epochs in (3, 1):
        trainer = make_trainer(num_train_epochs=epochs)
        callback = attach(trainer)
        trainer.train()
        callback.detach()
        names = [path.name for path in sorted(folder.glob("routes-epoch-*"))]
        assert names == [f"routes-epoch-{epoch:03d}.parquet" for epoch in range(epochs)]
        (run,) = find_runs([tmp_path / "run"])
        assert len(run.routes) == epochs


def shown_table(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]


def test_a_resumed_run_shows_its_routings_from_the_first_on(make_trainer, tmp_path, capsys, monkeypatch):
    trainer = make_trainer(**SAVING)
    attach(trainer)
    trainer.train()
    per_epoch = trainer.state.global_step // 3
    table = shown_table(capsys)
    drawn = []
    monkeypatch.setattr(report_module, "plot_route_flow", lambda routes, path: drawn.append(len(routes)))
    # From the first checkpoint of the second epoch: the third routing is made again.
    step = next(step for step in range(12, 100, 12) if per_epoch < step <= 2 * per_epoch)
    resumed = make_trainer(**SAVING)
    attach(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert drawn == [3]
    assert len(table) == 3 and shown_table(capsys) == table
