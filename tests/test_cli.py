"""`pivottrace triage` on a tiny model, and what every command says of wrong input."""

import json
import socket
import sqlite3
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from pivottrace_trl import AnnotationLedger, Answer, TriageConfig
from pivottrace_trl.cli import main
from pivottrace_trl.offline import plan_triage
from pivottrace_trl.pool import Questions
from pivottrace_trl.processes import BatchFolder

from .conftest import make_model, make_pool


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
@pytest.mark.pictures
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


def test_triage_of_a_partly_filled_column(model_path, pool_path, tmp_path, capsys):
    path, output = tmp_path / "partly.jsonl", tmp_path / "out"
    rows = [json.loads(line) for line in open(pool_path).read().splitlines()]

    def fill(num_filled):
        for number, row in enumerate(rows):
            row["answer"] = str(number + number % 5) if number < num_filled else [None, "", " "][number % 3]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ["--label-column", "answer", "--annotator", "queue", "--annotation-budget", "0.5"]
        assert triage(model_path, str(path), output, *options) == 0
        queue = [json.loads(line) for line in (output / "queue.jsonl").read_text().splitlines()]
        return {row["prompt"] for row in queue}, json.loads((output / "summary.json").read_text())

    queue, summary = fill(20)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Verified: 20 labels of yours, 0 bought of a budget of 10" in printed
    assert f"{len(queue)} questions are in" in printed and "nothing is discarded" not in printed
    assert queue and queue <= {row["question"] for row in rows[20:]}
    assert (summary["annotation_budget"], summary["annotated"], summary["own_labels"]) == (10, 0, 20)
    ledger = AnnotationLedger.open(output / "ledger.sqlite")
    assert ledger.own_ids == set(pq.read_table(output / "pool.parquet")["prompt_id"].to_pylist()[:20])
    assert ledger.label(next(iter(ledger.own_ids)))["answer"].isdigit()
    # Some are bought, and then the user fills in more: nothing is asked twice, nothing is paid for twice.
    query = ledger.queue()[0]
    ledger.record([Answer(query.prompt_id, {"answer": "5"}, "ann", 1.0)])
    queue, summary = fill(30)
    assert queue <= {row["question"] for row in rows[30:]} - {query.prompt}
    assert (summary["annotation_budget"], summary["annotated"]) == (5, 1) and summary["own_labels"] >= 29
    queue, summary = fill(40)
    assert "Nothing is worth asking for now" in " ".join(capsys.readouterr().out.split())
    assert queue == set() and (summary["annotated"], summary["routes"]["weak"]) == (1, 0)
    ledger.refresh()
    assert ledger.spent == 1.0 and ledger.budget == 0


def test_a_killed_triage_goes_on_where_it_stopped(model_path, pool_path, tmp_path, generated, monkeypatch, capsys):
    options = ["--label-column", "answer", "--limit", "20", "--batch-size", "10", "--estimator", "consistency"]
    assert triage(model_path, pool_path, tmp_path / "whole", *options) == 0
    assert len(generated) == 2 + 16  # eight samples a prompt
    generated.clear()
    save = BatchFolder.save

    def stop_while_tracing(folder, kind, number, table):
        if kind == "traces":
            raise KeyboardInterrupt
        save(folder, kind, number, table)

    for generated.stop_after in (1, 2, 9):
        with monkeypatch.context() as patch:
            if generated.stop_after == 2:
                patch.setattr(BatchFolder, "save", stop_while_tracing)
            assert triage(model_path, pool_path, tmp_path / "killed", *options) == 130
        told = f"interrupted. What was answered and traced is in {tmp_path / 'killed'}; the same command goes on from"
        assert told in capsys.readouterr().err
    generated.stop_after = None
    assert triage(model_path, pool_path, tmp_path / "killed", *options) == 0
    assert len(generated) == 2 + 16  # none of the batches twice
    for name in ("routes", "traces", "attempts"):
        whole, killed = (pq.read_table(tmp_path / run / f"{name}.parquet") for run in ("whole", "killed"))
        assert whole.equals(killed), name
    assert (tmp_path / "whole" / "queue.jsonl").read_text() == (tmp_path / "killed" / "queue.jsonl").read_text()
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "killed")]
    assert len({json.dumps({**summary, "seconds": 0, "peak_memory_gb": 0}) for summary in summaries}) == 1
    # A third call finds everything, and other settings nothing.
    generated.clear()
    assert triage(model_path, pool_path, tmp_path / "killed", *options) == 0 and not generated
    assert triage(model_path, pool_path, tmp_path / "killed", *options, "--max-completion-length", "11") == 0
    assert len(generated) == 2 + 16


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded."""
    loaded = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **options: loaded.append(name))
    return loaded


def pool_arguments(model_path, pool_path, tmp_path) -> list:
    """What every command on a pool needs."""
    places = {"--model": model_path, "--dataset": pool_path, "--output": tmp_path / "out"}
    return ["--prompt-column", "question", *(word for option in places.items() for word in option)]


def refusal(argv, capsys) -> str:
    """Run a command that must be refused; returns the one line that it says, without the bars of a dataset."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as stop:
        status = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "examples/s" not in line]
    assert status == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("command", ["triage", "study"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{tmp}/empty"], "--model {tmp}/empty is neither a folder with a model"),
        (["--model", "nobody/nothing"], "--model nobody/nothing is neither a folder with a model"),
        (["--model", "{tmp}/pool.jsonl"], "--model {tmp}/pool.jsonl is neither a folder with a model"),
        (["--dataset", "nowhere.jsonl"], "There is no file nowhere.jsonl."),
        (["--dataset", "nobody/nothing"], "There is no file or folder nobody/nothing, and the hub gave none"),
        (["--dataset", "{tmp}/empty"], "doesn't contain any data files"),
        (["--dataset", "{tmp}/pool.txt"], "{tmp}/pool.txt ends in '.txt', but a pool file must end in one of"),
        (["--dataset", "{tmp}/empty.jsonl"], "{tmp}/empty.jsonl cannot be read"),
        (["--dataset", "{tmp}/empty.csv"], "{tmp}/empty.csv cannot be read"),
        (["--dataset", "{tmp}/empty.json"], "{tmp}/empty.json cannot be read"),
        (["--dataset", "{tmp}/torn.jsonl"], "{tmp}/torn.jsonl cannot be read"),
        (["--dataset", "{tmp}/torn.parquet"], "{tmp}/torn.parquet cannot be read"),
        (["--dataset", "{tmp}/model"], "{tmp}/model cannot be read ("),
        (
            ["--label-column", "gold"],
            "There is no label column 'gold'; the pool has ['question', 'answer']. Name one of them as --label-column",
        ),
        (
            ["--prompt-column", "prompt"],
            "only ['question', 'answer']. Name the one that holds the prompts: --prompt-column.",
        ),
        (["--limit", "0"], "--limit is 0"),
        (["--batch-size", "0"], "argument --batch-size: '0' is not a number of at least 1"),
        (["--max-completion-length", "-5"], "argument --max-completion-length: '-5' is not a number of at least 1"),
        (["--output", "{tmp}/pool.jsonl"], "{tmp}/pool.jsonl cannot be written to (File exists)"),
        (["--output", "{tmp}/pool.jsonl/out"], "{tmp}/pool.jsonl/out cannot be written to (Not a directory)"),
        (["--output", "/proc/pivottrace"], "/proc/pivottrace cannot be written to"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_input_is_one_line_before_the_model_is_loaded(
    command, options, message, loads, model_path, pool_path, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pool.txt").write_text("1+1=?")
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).touch()
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "torn.jsonl").write_text('{"question": "1+')
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    given = pool_arguments(model_path, pool_path, tmp_path)
    given += ["--label-column", "answer", *(option.format(tmp=tmp_path) for option in options)]
    line = refusal([command, *given], capsys)
    assert message.format(tmp=tmp_path) in line and line.startswith("pivottrace") and not loads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            (["--annotation-budget", budget], f"--annotation-budget is '{budget}', which is neither a share in (0, 1]")
            for budget in ("0", "1.5", "-3", "150%", "nan", "abc", "x%")
        ],
        (["--annotation-budget", "41"], "between 1 and the size of the pool (40)"),
        (["--probe-size", "30"], "--probe-size is 30"),
        (["--estimator", "pivots"], "--estimator is 'pivots', but must be one of"),
        (["--answer-format", "words"], "There is no answer format 'words'"),
    ],
)
def test_a_triage_that_cannot_be_is_refused_before_the_model_is_loaded(
    options, message, loads, model_path, pool_path, tmp_path, capsys
):
    given = pool_arguments(model_path, pool_path, tmp_path)
    line = refusal(["triage", *given, *options], capsys)
    assert message in line and line.startswith("pivottrace triage: ")
    assert not loads and not (tmp_path / "out").exists()


def test_a_triage_by_shares_is_refused_a_score_that_learns_from_probes(tmp_path):
    config = TriageConfig(discard_ratio=0.4)
    with pytest.raises(ValueError, match="learns from a probe set.*`discard_ratio=0.4`"):
        plan_triage(make_pool(), tmp_path / "out", Questions(), estimator="probe_calibrated", config=config)
    assert not (tmp_path / "out").exists()


RUN_COMMANDS = [
    ["annotate", "export"],
    ["annotate", "status"],
    ["annotate", "import", "{run}", "answers.csv"],
    ["annotate", "backup", "{run}", "copy.sqlite"],
    ["desk"],
]


def at(command, run) -> list[str]:
    return [word.format(run=run) for word in command] + ([] if "{run}" in command else [str(run)])


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=" ".join)
def test_a_folder_that_is_no_run(command, tmp_path, capsys):
    assert f"There is no ledger in {tmp_path}" in refusal(at(command, tmp_path), capsys)
    assert "There is no ledger in nowhere" in refusal(at(command, "nowhere"), capsys)


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=" ".join)
def test_a_file_that_is_no_ledger(command, tmp_path, capsys):
    (tmp_path / "ledger.sqlite").write_text("not a ledger, but long enough to look at" * 10)
    assert f"{tmp_path / 'ledger.sqlite'} is not a ledger" in refusal(at(command, tmp_path), capsys)


@pytest.mark.parametrize("command", [*RUN_COMMANDS, ["triage"]], ids=" ".join)
def test_a_ledger_that_another_program_holds(
    command, ledger_path, loads, model_path, pool_path, tmp_path, monkeypatch, capsys
):
    holder = sqlite3.connect(ledger_path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.05}))
    argv = at(command, ledger_path.parent)
    if command == ["triage"]:
        argv = ["triage", "--model", model_path, "--dataset", pool_path, "--prompt-column", "question"]
        argv += ["--output", str(ledger_path.parent)]
    try:
        line = refusal(argv, capsys)
    finally:
        holder.close()
    assert "cannot be opened as a ledger (database is locked). Close the program that holds it" in line and not loads


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["annotate", "export", "{run}", "--output", "{run}/ledger.sqlite/queue.jsonl"], "File exists"),
        (["annotate", "export", "{run}", "--limit", "0"], "--limit is 0"),
        (["annotate", "export", "{run}", "--format", "xls"], "invalid choice: 'xls'"),
        (["annotate", "import", "{run}", "{run}/nowhere.csv"], "nowhere.csv"),
        (["annotate", "import", "{run}", "{run}/x.csv", "--price", "-1"], "argument --price: '-1' is not a price"),
        (["desk", "{run}", "--price", "free"], "argument --price: 'free' is not a price of at least 0"),
        (["desk", "{run}", "--port", "99999"], "The desk cannot listen at 127.0.0.1:99999"),
        (["desk", "{run}", "--host", "no.such.host.invalid"], "The desk cannot listen at no.such.host.invalid:7860"),
        (["annotate", "backup", "{run}", "{run}/ledger.sqlite/copy"], "{run}/ledger.sqlite"),
        (["report", "{run}"], "There is no finished run in {run}"),
        (["report", "nowhere"], "There is no finished run in nowhere"),
        (["demo", "--output", "{run}/ledger.sqlite"], "{run}/ledger.sqlite cannot be written to (File exists)"),
        (["demo", "--max-steps", "0"], "argument --max-steps: '0' is not a number of at least 1"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_other_commands_refuse_in_one_line(argv, message, ledger_path, capsys):
    run = ledger_path.parent
    assert message.format(run=run) in refusal([word.format(run=run) for word in argv], capsys)


def test_a_report_that_cannot_be_written(tmp_path, capsys):
    record = {"arm": "a", "seed": 0, "max_steps": 1, "steps": 1, "peak_gpu_memory_gb": None, "num_labels": 3}
    (tmp_path / "run.json").write_text(json.dumps(record | {"environment": {}, "settings": {}, "log_history": []}))
    line = refusal(["report", tmp_path, "--output", tmp_path / "run.json"], capsys)
    assert (
        line == f"pivottrace report: {tmp_path / 'run.json'} cannot be written to (File exists). Name another folder."
    )


def test_a_port_that_is_taken(ledger_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refusal(["desk", ledger_path.parent, "--port", port], capsys)
    assert f"The desk cannot listen at 127.0.0.1:{port} (" in line and "Choose another --port" in line
    assert not (ledger_path.parent / "desk-token").exists()


def test_a_desk_without_gradio(ledger_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "pivottrace-trl[desk]"' in refusal(["desk", ledger_path.parent], capsys)


def test_users_without_a_name(monkeypatch, capsys):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nameless)
    with pytest.raises(SystemExit):
        main(["desk", "--help"])
    assert "(default: unknown)" in capsys.readouterr().out


def test_help_is_there_at_once():
    """What takes seconds to import waits until a command needs it."""
    code = (
        "import sys; from pivottrace_trl.cli import main\ntry: main(['triage', '--help'])\nexcept SystemExit: pass\n"
    )
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'rich', 'matplotlib', 'gradio'}"
    code += f"assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
