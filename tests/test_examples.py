"""Every example runs at its smallest size."""

import json
import runpy
import sqlite3
from pathlib import Path

import pytest

from pivottrace_trl import AnnotationLedger

from .conftest import make_model


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_example(tokenizer, tmp_path, monkeypatch, capfd):
    model_path, pool_path, output = tmp_path / "model", tmp_path / "pool.jsonl", tmp_path / "run"
    make_model("llama").save_pretrained(model_path)
    tokenizer.save_pretrained(model_path)
    rows = [{"question": f"{n}+{n % 5}?", "answer": f"easy #### {n + n % 5}"} for n in range(12)]
    pool_path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name, *options):
        arguments = ["--model", model_path, "--dataset", pool_path, "--output-dir", output, "--use-cpu"]
        arguments += ["--max-steps", "2", "--max-completion-length", "8", *options]
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return output, capfd.readouterr().out

    return run


def test_two_lines(run_example):
    output, _ = run_example("grpo_two_lines.py")
    assert json.loads((output / "pivottrace" / "summary.json").read_text())["annotation_budget"] == 3


def test_human_in_the_loop(run_example):
    output, said = run_example("human_in_the_loop.py", "--person-seconds", "0.2")
    ledger = AnnotationLedger.open(output / "pivottrace" / "ledger.sqlite")
    assert 1 <= ledger.num_bought <= 3 and {ledger.author(i) for i in ledger.bought_ids} == {"script"}
    with sqlite3.connect(ledger.path) as connection:
        texts = dict(connection.execute("SELECT prompt_id, prompt FROM prompts"))
    for identity in ledger.bought_ids:
        first, second = texts[identity].split("?")[0].split("+")
        assert ledger.label(identity) == {"solution": str(int(first) + int(second))}
    assert "answered by script" in said
