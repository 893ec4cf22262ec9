"""Every example runs at its smallest size."""

import json
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pivottrace_trl import AnnotationLedger, Route
from pivottrace_trl.report.record import find_runs

from .conftest import make_model


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_example(tokenizer, tmp_path, monkeypatch, capfd):
    model_path, pool_path, output = tmp_path / "model", tmp_path / "pool.jsonl", tmp_path / "run"
    make_model("llama").save_pretrained(model_path)
    tokenizer.save_pretrained(model_path)
    rows = [{"question": f"{n}+{n % 5}?", "answer": f"easy #### {n + n % 5}"} for n in range(12)]
    pool_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out_path = tmp_path / "held_out.jsonl"
    held_out = [{"question": f"{n}-{n % 5}?", "answer": f"easy #### {n - n % 5}"} for n in range(12)]
    held_out_path.write_text("".join(json.dumps(row) + "\n" for row in held_out))

    def reproduce(*options):
        output.mkdir(exist_ok=True)
        trainer = ["max_steps=2", "eval_steps=1", "per_device_train_batch_size=8", "per_device_eval_batch_size=4"]
        trainer += ["num_generations=4", "num_generations_eval=1", "max_completion_length=8", "save_steps=1"]
        trainer += ["gradient_accumulation_steps=1", "bf16=false", "use_cpu=true", "disable_tqdm=true"]
        arguments = ["--preset", "consumer", "--output", output, "--model", model_path, "--train", pool_path]
        arguments += [
            "--evaluate",
            f"a={held_out_path}",
            f"b={held_out_path}",
            "--num-held-out",
            "4",
            "--no-4bit",
            "--trainer",
        ]
        name = "reproduce_annotation_efficiency.py"
        monkeypatch.setattr("sys.argv", [name, *map(str, [*arguments, *trainer, *options])])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return output, capfd.readouterr().out

    def run(name, *options):
        if name.startswith("reproduce"):
            return reproduce(*options)
        arguments = ["--model", model_path, "--dataset", pool_path, "--output-dir", output, "--use-cpu"]
        arguments += ["--max-steps", "2", "--max-completion-length", "8", *options]
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return output, capfd.readouterr().out

    return run


def test_two_lines(run_example):
    output, _ = run_example("grpo_two_lines.py")
    assert json.loads((output / "_pivottrace" / "summary.json").read_text())["annotation_budget"] == 3


def test_human_in_the_loop(run_example):
    output, said = run_example("human_in_the_loop.py", "--person-seconds", "0.2")
    ledger = AnnotationLedger.open(output / "_pivottrace" / "ledger.sqlite")
    assert 1 <= ledger.num_bought <= 3 and {ledger.author(i) for i in ledger.bought_ids} == {"script"}
    with sqlite3.connect(ledger.path) as connection:
        texts = dict(connection.execute("SELECT prompt_id, prompt FROM prompts"))
    for identity in ledger.bought_ids:
        first, second = texts[identity].split("?")[0].split("+")
        assert ledger.label(identity) == {"solution": str(int(first) + int(second))}
    assert "Authors   script" in said


def test_reproduction(run_example, tmp_path):
    name, arms = "reproduce_annotation_efficiency.py", ["--arms", "full", "pivottrace", "majority", "--seeds", "3"]
    output, said = run_example(name, *arms, "--summary", tmp_path / "summary.jsonl")
    assert "Run 1 of 3: full, seed 3" in said and "Run 3 of 3: majority, seed 3, about" in said
    runs = {run.arm: run for run in find_runs([output])}
    assert {run.steps for run in runs.values()} == {2} and {run.seed for run in runs.values()} == {3}
    labels = {arm: run.num_labels for arm, run in runs.items()}
    assert labels == {"full supervision": 12, "PivotTrace": 3, "majority vote, no label": 0}
    # All arms start from the same policy, asked the same way, on both sets.
    starts = [[curve.accuracy[0] for curve in run.evaluations.values()] for run in runs.values()]
    assert len(starts[0]) == 2 and starts[0] == starts[1] == starts[2]
    lines = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["seed"], line["labels"]) for line in lines] == [
        ("full", 3, 12), ("pivottrace", 3, 3), ("majority", 3, 0),
    ]  # fmt: skip
    # Nothing is learnt here, so that all reach the accuracy of full supervision at the first step.
    assert {line["final_accuracy"] for line in lines} == {0.0} and {line["steps_to_full"] for line in lines} == {1}
    assert all(0 < line["tokens_to_full"] < line["tokens"] and line["testbed"].endswith("/2048") for line in lines)
    (output / "full" / "seed-3" / "run.json").rename(tmp_path / "kept.json")
    example = runpy.run_path(str(EXAMPLES / name))
    folders = output / "majority" / "seed-3", output / "full" / "seed-3"
    line = example["summarize"](*folders, example["PRESETS"]["consumer"], "majority", 1.0)
    assert line["steps_to_full"] is line["tokens_to_full"] is None
    (tmp_path / "kept.json").rename(output / "full" / "seed-3" / "run.json")
    routes = runs["PivotTrace"].routes[0]
    assert [(routes == route).sum() for route in Route] == [5, 4, 3]

    # The same command goes on: nothing is run again, and what was cut off begins at its checkpoint.
    folder = output / "full" / "seed-3"
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "checkpoint-2")
    (folder / "checkpoint-1" / "kept").touch()
    _, said = run_example(name, *arms)
    assert said.count("is finished") == 2 and json.loads((folder / "run.json").read_text())["steps"] == 2
    assert (folder / "checkpoint-1" / "kept").is_file()
    with pytest.raises(SystemExit, match="begun with other settings"):
        run_example(name, *arms, "--pool-size", "8")


def test_rivals_and_ceilings(run_example, tmp_path):
    """Labels of each arm, on a pool of 12 prompts; the schedule of the learning rate is the user's."""
    labels = {
        "random-labelled-only": 3, "uncertain-labelled-only": 3, "random-with-votes": 3, "full-routed": None,
        "ceiling-right-votes": None, "ceiling-dearest-labels": 3,
    }  # fmt: skip
    name, summary = "reproduce_annotation_efficiency.py", tmp_path / "new" / "summary.jsonl"
    output, _ = run_example(name, "lr_scheduler_type=linear", "--arms", *labels, "--seeds", "3", "--summary", summary)
    lines = {line["arm"]: line for line in map(json.loads, summary.read_text().splitlines())}
    assert list(lines) == list(labels)
    for arm, expected in labels.items():
        assert lines[arm]["labels"] == expected or (expected is None and 1 <= lines[arm]["labels"] <= 12), arm
        assert lines[arm]["schedule"] == "linear" and [step for step, *_ in lines[arm]["curve"]] == [0, 1, 2]
    runs = {run.arm: run for run in find_runs([output])}
    only = next(run for arm, run in runs.items() if "highest total entropy" in arm)
    # 3 labels, 8 discarded; a pool of 12 leaves one between the shares.
    assert [(routes == route).sum() for routes in only.routes[-1:] for route in Route] == [8, 1, 3]


def test_testbeds_are_named_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reproduce", "--train", "chains:0.6", "--pool-size", "64", "--num-held-out", "9"])
    example = runpy.run_path(str(EXAMPLES / "reproduce_annotation_efficiency.py"))
    preset = example["configure"](example["parse"]())
    pool, held_out = example["load_data"](preset, seed=0)
    num_easy = sum(len(prompt[0]["content"]) <= 7 for prompt in pool["prompt"])
    assert len(pool) == 64 and len(held_out["chains"]) == 9 and num_easy >= 0.5 * 64
    # What is labelled at random depends on the seed alone.
    arm = example["EVERY_ARM"]["random-labelled-only"]
    chosen = [example["label_pool"](arm, pool, 8, seed)[0]["prompt"] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 18
    monkeypatch.setattr("sys.argv", ["reproduce", "--help"])
    with pytest.raises(SystemExit):
        example["parse"]()
    said = capsys.readouterr().out
    assert "ceiling-dearest-labels: ceiling, reads all labels" in said and "majority: majority vote" in said


def test_evidence_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    scripts = EXAMPLES.parent / "scripts"
    evidence = runpy.run_path(str(scripts / "evidence.py"))
    plan = {"options": ["--num-held-out", "512"], "blocks": [
        {"testbeds": ["chains:0.6/1024"], "arms": ["full", "two-lines"], "seeds": [100, 101]},
        {"testbeds": ["chains:0.6/1024", "chains:0/256"], "arms": ["full"], "seeds": [100]},
    ]}  # fmt: skip
    runs = [tuple(run) for run in evidence["planned"](plan)]
    assert runs == [
        ("chains:0.6/1024", "full", 100), ("chains:0.6/1024", "two-lines", 100), ("chains:0.6/1024", "full", 101),
        ("chains:0.6/1024", "two-lines", 101), ("chains:0/256", "full", 100),
    ]  # fmt: skip
    (tmp_path / "tuning-plan.json").write_text(json.dumps(plan))
    done = [{"testbed": testbed, "arm": arm, "seed": seed} for testbed, arm, seed in runs[:3]]
    (tmp_path / "tuning.jsonl").write_text("".join(json.dumps(line) + "\n" for line in done))
    asked = []

    def execute(run, options, output):
        asked.append((tuple(run), options))
        if run.arm == "two-lines":
            raise RuntimeError("two-lines failed, see its log")
        return dict(zip(("testbed", "arm", "seed"), run, strict=True)) | {"final_accuracy": 0.8, "cpu_seconds": 9}

    main = evidence["main"]
    main.__globals__.update(execute=execute, commit_of=lambda root: "c0ffee")
    monkeypatch.setattr("sys.argv", ["evidence.py", str(tmp_path / "tuning-plan.json"), "--output", str(tmp_path)])
    assert main() == 1 and asked == [(run, plan["options"]) for run in runs[3:]]
    said = capsys.readouterr().out
    assert "3 of 5 runs are finished." in said and "two-lines failed, see its log" in said
    assert "2 of 2: chains:0/256 full 100: 80.0%, 9 s" in said
    *_, line = map(json.loads, (tmp_path / "tuning.jsonl").read_text().splitlines())
    assert line["commit"] == "c0ffee" and line["machine"] and line["arm"] == "full"
    asked.clear()
    assert main() == 1 and [arm for (_, arm, _), _ in asked] == ["two-lines"]


def test_evidence_ends_its_runs_with_itself(tmp_path):
    """Else the same command would begin a run beside the one that was left behind, in the same folder."""
    example, plan, pid = tmp_path / "example.py", tmp_path / "plan.json", tmp_path / "pid"
    example.write_text(
        f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(300)"
    )
    block = {"testbeds": ["chains:0/8"], "arms": ["full"], "seeds": [100]}
    plan.write_text(json.dumps({"options": [], "blocks": [block]}))
    script = EXAMPLES.parent / "scripts" / "evidence.py"
    code = (
        f"import pathlib, runpy, sys; main = runpy.run_path({str(script)!r})['main']; "
        f"main.__globals__.update(EXAMPLE=pathlib.Path({str(example)!r}), commit_of=lambda root: 'c0ffee'); main()"
    )
    with subprocess.Popen([sys.executable, "-c", code, plan, "--output", tmp_path / "work"]) as evidence:
        end = time.monotonic() + 60
        while not (pid.is_file() and pid.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        evidence.terminate()
        assert evidence.wait(60) == 143
    assert not psutil.pid_exists(int(pid.read_text()))


def test_evidence_is_compared_by_seed(tmp_path, monkeypatch, capsys):
    def line(arm, seed, labels, *accuracies):
        curve = [[40 * place, accuracy, 1000 * labels * place] for place, accuracy in enumerate(accuracies)]
        return {"testbed": "chains:0/8", "arm": arm, "seed": seed, "labels": labels, "curve": curve}

    lines = [
        line("full", 100, 8, 0.5, 0.6, 0.7), line("two-lines", 100, 2, 0.5, 0.7, 0.7),
        line("full", 101, 8, 0.5, 0.6, 0.8), line("two-lines", 101, 2, 0.5, 0.8, 0.8),
        line("full", 102, 8, 0.5, 0.9, 0.9),
    ]  # fmt: skip
    constant = {"schedule": "constant_with_warmup"}
    rows = [json.dumps(line | constant) for line in lines] + [json.dumps(lines[0] | {"schedule": "linear"})]
    (tmp_path / "tuning.jsonl").write_text("\n".join(rows) + "\n")
    name = EXAMPLES.parent / "benchmarks" / "evidence_tables.py"
    arguments = [name, tmp_path / "tuning.jsonl", "--plot", tmp_path / "tuning"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    runpy.run_path(str(name), run_name="__main__")
    constant, linear = capsys.readouterr().out.split("`chains:0/8 linear`")
    # Two seeds have both arms: 0.70 against 0.65, and 0.80 against 0.70; three have full supervision.
    assert (
        "| `two-lines` | 2 | 2 | 0.750 | 0.750 | 75.0% (11.5% to 138.5%) | +7.5% (-24.3% to +39.3%) | - |" in constant
    )
    assert "| `full` | 3 | 8 | 0.700 | 0.800 | 75.0% " in constant and "| - | - | 80 | 16k | 16k |" in constant
    assert "| `full` | 1 | 8 | 0.600 | 0.700 | 65.0% | - | - | 80 | 16k | 16k |" in linear
    assert {path.name for path in tmp_path.glob("*.png")} == {"tuning-chains-0-8.png", "tuning-chains-0-8-linear.png"}
