"""Every example runs at its smallest size."""

import json
import runpy
import shutil
import sqlite3
from pathlib import Path

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
    assert "answered by script" in said


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


def test_votes_never_see_a_label():
    example = runpy.run_path(str(EXAMPLES / "reproduce_annotation_efficiency.py"))
    reward = example["majority_reward"]
    reward.num_generations = 4
    texts = ["\\boxed{1}", "\\boxed{2}", "\\boxed{1}", "none"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward(completions) == [1.0, 0.0, 1.0, 0.0]
    assert reward(completions, ["$2$"] * 4)[:3] == [0.0, 1.0, 0.0]
