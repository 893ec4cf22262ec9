"""`pivottrace triage` on a tiny model."""

import json

import pyarrow.parquet as pq
import pytest

from pivottrace_trl.cli import main

from .conftest import make_model


@pytest.fixture
def model_path(tokenizer, tmp_path):
    model = make_model("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def pool_path(tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [{"question": f"{i}+{i % 5}=?", "answer": f"easy #### {i + i % 5}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def triage(model_path, pool_path, output, *options) -> int:
    fixed = ["--prompt-column", "question", "--output", str(output), "--max-completion-length", "12"]
    return main(["triage", "--model", model_path, "--dataset", pool_path, *fixed, *options])


@pytest.mark.parametrize(
    "options", [[], ["--estimator", "forking_tokens"], pytest.param(["--load-in-4bit"], marks=pytest.mark.bnb)]
)
def test_triage_with_labels(options, model_path, pool_path, tmp_path, capsys):
    assert triage(model_path, pool_path, tmp_path / "out", "--label-column", "answer", "--limit", "30", *options) == 0
    routes = pq.read_table(tmp_path / "out" / "routes.parquet").to_pydict()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(routes["route"]) == summary["pool_size"] == 30
    assert summary["annotation_budget"] == 8 and summary["annotated"] == 4 == sum(routes["is_probe"])
    assert sum(summary["routes"].values()) == 30
    queue = [json.loads(line) for line in (tmp_path / "out" / "queue.jsonl").read_text().splitlines()]
    assert len(queue) == summary["queue"] <= 4
    assert all(row["answer"] == "" and row["purpose"] == "annotate" for row in queue)
    assert (tmp_path / "out" / "scores.png").stat().st_size > 0
    attempts = pq.read_table(tmp_path / "out" / "attempts.parquet").to_pydict()
    assert attempts["prompt_id"] == routes["prompt_id"]
    assert [len(starts) for starts in attempts["pivot_start"]] == routes["num_pivots"]
    assert [row["score"] for row in queue] == sorted((row["score"] for row in queue), reverse=True)
    traces = pq.read_table(tmp_path / "out" / "traces.parquet").to_pydict()
    assert [len(signal) for signal in traces["long_range_mass"]] == [n if n > 1 else 0 for n in routes["num_tokens"]]
    printed = capsys.readouterr().out
    assert "Triage of 30 prompts" in printed and "peak memory" in printed and "Took" in printed


def test_triage_without_labels_asks_for_the_probes_first(model_path, pool_path, tmp_path, capsys):
    assert triage(model_path, pool_path, tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["annotated"] == 0 and summary["routes"] == {"discard": 0, "weak": 29, "annotate": 11}
    queue = [json.loads(line) for line in (tmp_path / "out" / "queue.jsonl").read_text().splitlines()]
    assert [row["purpose"] for row in queue] == ["probe"] * 5 + ["annotate"] * 6
    assert "nothing is discarded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--annotation-budget", "1.5"], "neither a share in (0, 1] nor a number of labels"),
        (["--annotation-budget", "0"], "neither a share"),
        (["--label-column", "gold"], "no label column `gold`"),
        (["--prompt-column", "prompt"], "no `prompt` column"),
        (["--limit", "0"], "`limit` is 0"),
        (["--probe-size", "30"], "`probe_size` is 30"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(options, message, model_path, pool_path, tmp_path, capsys):
    assert triage(model_path, pool_path, tmp_path / "out", *options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and line.startswith("pivottrace triage: ")


def test_files_that_do_not_exist(model_path, tmp_path, capsys):
    assert triage(model_path, "nowhere.jsonl", tmp_path / "out") == 2
    assert "no file nowhere.jsonl" in capsys.readouterr().err


def test_an_unknown_estimator(model_path, pool_path, tmp_path, capsys):
    assert triage(model_path, pool_path, tmp_path / "out", "--estimator", "pivots") == 2
    assert "'pivots', but must be one of" in capsys.readouterr().err


def test_users_without_a_name(monkeypatch, capsys):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nameless)
    with pytest.raises(SystemExit):
        main(["desk", "--help"])
    assert "(default: unknown)" in capsys.readouterr().out
