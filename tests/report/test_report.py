"""Runs are read, compared by known figures, and shown on one page that needs nothing else."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from pivottrace_trl.cli import main
from pivottrace_trl.report.comparison import first_step_at, mean_over_seeds, summarise
from pivottrace_trl.report.page import collapse_verdicts, write_report
from pivottrace_trl.report.record import RunRecorder, describe_environment, find_runs

from ..conftest import attach, make_pool


STEPS = [0, 10, 20, 30]
CURVES = {
    ("full supervision", 0): [0.5, 0.6, 0.65, 0.7],
    ("full supervision", 1): [0.5, 0.55, 0.65, 0.8],
    ("PivotTrace", 0): [0.5, 0.75, 0.76, 0.74],
    ("PivotTrace", 1): [0.5, 0.75, 0.8, 0.82],
    ("Random", 0): [0.5, 0.55, 0.6, 0.66],
    ("Random", 1): [0.5, 0.55, 0.6, 0.7],
}


def evaluation(step, accuracy, name=""):
    return {
        "step": step,
        f"eval_{name}_loss" if name else "eval_loss": 0.0,
        "eval_reward": accuracy,
        "eval_num_tokens": 100.0 * step,
    }


def write_run(folder, arm, seed, curve, labels, name="", routed=False):
    """A run folder as a `RunRecorder` and a `PivotDensityCallback` leave it."""
    log = [evaluation(step, accuracy, name) for step, accuracy in zip(STEPS, curve)]
    if routed:
        spent = {"pivottrace/scoring_tokens": 500, "pivottrace/num_weak": 4}
        log.insert(1, {"step": 0, "pivottrace/labels_bought": 3, **spent})
        log.insert(3, {"step": 15, "pivottrace/labels_bought": labels, **spent})
        log += [
            {"step": step, "pivottrace/vote_accuracy": accuracy, "pivottrace/votes_paused": float(step == 25)}
            for step, accuracy in ((5, 0.5), (15, 0.6), (25, 0.75))
        ]
    record = {
        "arm": arm, "seed": seed, "max_steps": 30, "steps": 30, "peak_gpu_memory_gb": None,
        "num_labels": None if routed else labels, "settings": {}, "environment": describe_environment(),
        "log_history": log,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    if routed:
        inner = folder / "_pivottrace"
        inner.mkdir()
        (inner / "run.json").write_text(json.dumps({**record, "num_labels": labels, "pool_size": 4}))
        for epoch, routes in enumerate((["weak"] * 3 + ["annotate"], ["discard", "weak", "annotate", "annotate"])):
            table = {"route": routes, "score": [0.1, 0.2, 0.3, 0.4], "pass_rate": [np.nan, 1.0, 0.5, 0.0]}
            pq.write_table(pa.table(table), inner / f"routes-epoch-{epoch:03d}.parquet")
    return folder


@pytest.fixture
def runs_path(tmp_path):
    for (arm, seed), curve in CURVES.items():
        routed = arm != "full supervision"
        write_run(tmp_path / "runs" / arm / str(seed), arm, seed, curve, 5 if routed else 17, routed=routed)
    return tmp_path / "runs"


def test_runs_are_read_with_what_was_spent_by_then(runs_path):
    runs = {(run.arm, run.seed): run for run in find_runs([runs_path])}
    assert set(runs) == set(CURVES)
    full, pivot = runs["full supervision", 0].evaluations[""], runs["PivotTrace", 0].evaluations[""]
    assert full.labels.tolist() == [17] * 4 and full.tokens.tolist() == [0, 1000, 2000, 3000]
    # Scoring and the first routing come before the first evaluation, though they are logged after it.
    assert pivot.labels.tolist() == [3, 3, 5, 5] and pivot.tokens.tolist() == [500, 1500, 2500, 3500]
    run = runs["PivotTrace", 0]
    assert (run.num_labels, run.pool_size, len(run.routes)) == (5, 4, 2)
    assert run.routes[1].tolist() == [0, 1, 2, 2] and np.isnan(run.pass_rates[0][0])


def test_the_interval_of_a_mean_is_students():
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    result = mean_over_seeds(values)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.mean == pytest.approx(0.34) and np.isnan(mean_over_seeds([0.3]).low)


def test_first_step_at():
    steps, curve = np.array(STEPS), np.array([0.9, 0.5, 0.7, 0.6])
    # What the policy could do before is nothing that training reached.
    assert (first_step_at(steps, curve, 0.6), first_step_at(steps, curve, 0.8)) == (20, None)


def test_arms_are_summarised(runs_path):
    full, pivot, random = summarise(find_runs([runs_path]), "", "full supervision")
    assert [full.arm, pivot.arm, random.arm] == ["full supervision", "PivotTrace", "Random"]
    assert (full.goal_step, full.speed_up, full.against_reference) == (30, 1.0, None)
    # The goal is the mean final accuracy of the reference, 0.75; its own mean curve reaches it at step 30.
    assert (pivot.goal_step, pivot.speed_up, pivot.goal_steps) == (10, 3.0, (10, 20))
    assert (random.goal_step, random.speed_up, random.goal_steps) == (None, None, (None, None))
    assert pivot.final.mean == pytest.approx(0.78) and pivot.labels.mean == 5
    assert pivot.against_reference.mean == pytest.approx(0.03) and pivot.against_random.mean == pytest.approx(0.1)
    paired = stats.ttest_rel([0.74, 0.82], [0.7, 0.8]).confidence_interval(0.95)
    assert pivot.against_reference.high == pytest.approx(paired.high)
    assert pivot.area.mean == pytest.approx(np.mean([[0.75, 0.76, 0.74], [0.75, 0.8, 0.82]]))
    assert pivot.area_against_reference.mean == pytest.approx(pivot.area.mean - full.area.mean)


def test_only_what_all_seeds_share_is_compared(tmp_path):
    write_run(tmp_path / "a", "A", 0, [0.1, 0.2, 0.3, 0.4], 1)
    write_run(tmp_path / "b", "A", 1, [0.1, 0.2], 1)  # evaluated at steps 0 and 10 only
    write_run(tmp_path / "c", "full supervision", 1, [0.1, 0.2, 0.3, 0.5], 1)
    full, arm = summarise(find_runs([tmp_path]), "", "full supervision")
    assert arm.steps.tolist() == [0, 10] and arm.curves.shape == (2, 2)
    assert arm.against_reference.num_seeds == 1 and arm.against_reference.mean == pytest.approx(0.2 - 0.5)


def test_several_evaluated_sets_are_kept_apart(tmp_path):
    write_run(tmp_path / "a", "A", 0, [0.1, 0.2, 0.3, 0.4], 1, name="gsm8k")
    path = tmp_path / "a" / "run.json"
    record = json.loads(path.read_text())
    record["log_history"] += [evaluation(step, 0.9, "math500") for step in STEPS]
    path.write_text(json.dumps(record))
    (run,) = find_runs([tmp_path])
    assert set(run.evaluations) == {"gsm8k", "math500"}
    assert run.evaluations["math500"].accuracy.tolist() == [0.9] * 4
    write_report([run], tmp_path / "report")
    assert {"accuracy-gsm8k.png", "accuracy-math500.png"} <= {path.name for path in (tmp_path / "report").iterdir()}


def test_the_page_needs_nothing_else(runs_path, tmp_path, capsys):
    output = tmp_path / "report"
    assert main(["report", str(runs_path), "--output", str(output)]) == 0
    assert "6 runs shown in" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    names = {path.stem for path in output.glob("*.png")}
    assert names == {"accuracy", "labels", "routes", "calibration", "pseudo-labels"}
    assert page.count("data:image/png;base64,") == 3 + 1 + 2 + 2 + 3  # a panel each
    assert "difference +3.0% (" in page and "3.00 times as soon" in page and "is not reached" in page
    assert describe_environment()["versions"]["trl"] in page and "pseudo-labels paused in 2 runs" in page
    figures = json.loads((output / "report.json").read_text())[""]
    assert [arm["goal_step"] for arm in figures] == [30, 10, None]


def test_names_cannot_inject_markup(tmp_path):
    write_run(tmp_path / "a", "<b>full</b>", 0, [0.1, 0.2, 0.3, 0.4], 1)
    page = write_report(find_runs([tmp_path]), tmp_path / "report", "<b>full</b>").read_text()
    assert "<b>full</b>" not in page and "&lt;b&gt;full" in page


def test_a_reference_that_is_missing_is_said(runs_path, tmp_path):
    page = write_report(find_runs([runs_path]), tmp_path / "report", "other").read_text()
    assert "No arm is called <code>other</code>" in page and "against other" not in page


def test_collapse_verdicts(runs_path):
    verdicts = {verdict["arm"]: verdict for verdict in collapse_verdicts(find_runs([runs_path]))}
    assert set(verdicts) == {"PivotTrace", "Random"}
    pivot = verdicts["PivotTrace"]
    assert (pivot["num_runs"], pivot["num_paused"], pivot["first_step"]) == (2, 2, 25)
    assert pivot["vote_accuracy"] == [0.5, 0.75]


def test_what_cannot_be_compared_is_refused(runs_path, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "There is no finished run in" in capsys.readouterr().err
    write_run(runs_path / "again", "Random", 1, [0.1] * 4, 5)
    with pytest.raises(ValueError, match="are both seed 1 of 'Random'"):
        find_runs([runs_path])
    (runs_path / "again" / "run.json").write_text('{"arm": "x"}')
    with pytest.raises(ValueError, match="again/run.json cannot be read .*is no record of a run"):
        find_runs([runs_path])


def test_a_recorder_and_a_callback_leave_what_the_report_reads(make_trainer, tmp_path):
    trainer = make_trainer(make_pool(16), max_steps=2)
    callback = attach(trainer, 4)
    trainer.train()
    (run,) = find_runs([tmp_path / "run"])  # the callback alone is enough
    assert (run.arm, run.num_labels, run.pool_size) == ("PivotTrace", callback.ledger.num_bought, 16)
    assert run.logged("pivottrace/scoring_tokens")[1][0] == callback.num_scoring_tokens > 0
    RunRecorder("mine").on_train_end(trainer.args, trainer.state, trainer.control)
    (run,) = find_runs([tmp_path / "run"])
    assert (run.arm, run.num_labels, run.pool_size) == ("mine", callback.ledger.num_bought, 16)
    assert len(run.routes) == callback.summary()["num_routings"]
    assert write_report([run], tmp_path / "report").is_file()


def test_a_record_holds_no_secret(make_trainer, tmp_path, monkeypatch):
    """Neither arguments nor environment of the process, nor what settings and log call a secret."""
    secret = "sk-4f1c9b7e"
    argv = ["/home/me/train.py", "--api-key", secret, f"--api-key={secret}", f"https://me:{secret}@host/v1", secret]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("HF_TOKEN", secret)
    trainer = make_trainer(make_pool(16), max_steps=2, hub_token=secret)
    callback = attach(trainer, 4)
    settings = {
        **dict.fromkeys(("token", "hub_token", "push_to_hub_token", "API_KEY", "api-key", "wandb_password"), secret),
        "client": [{"secret": secret, "base_url": f"https://me:{secret}@host/v1", "max_tokens": 7}],
        "num_tokens": 5,
    }
    trainer.add_callback(RunRecorder("mine", settings=settings))
    trainer.train()
    trainer.state.log_history.append({"step": 3, "note": secret, "reward": 0.5})
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    write_report(find_runs([tmp_path / "run"]), tmp_path / "run" / "report")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["environment"]["program"] == "train.py" in (tmp_path / "run" / "report" / "report.html").read_text()
    assert record["settings"] == {"client": [{"base_url": "https://host/v1", "max_tokens": 7}], "num_tokens": 5}
    own = json.loads((tmp_path / "run" / "_pivottrace" / "run.json").read_text())
    assert own["log_history"][-1] == {"step": 3, "reward": 0.5} and own["settings"]["tau_high"] == 0.85
