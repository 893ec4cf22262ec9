"""What a run says when it is attached, and what it says to look at in the end."""

import shlex

import pytest

from pivottrace_trl import TriageConfig
from pivottrace_trl.cli import main
from pivottrace_trl.report.messages import name_annotator

from ..conftest import attach, digit_reward, make_pool


def parts(text: str) -> dict[str, str]:
    """The lines of an aligned block by their first word."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and line[2:12].strip().isalpha()]
    return {line[2:12].strip(): line[12:] for line in lines}


def test_the_start_tells_what_was_found(make_trainer, capsys):
    pool = make_pool(20)
    labels = [label if row < 5 else None for row, label in enumerate(pool["solution"])]
    pool = pool.remove_columns("solution").add_column("solution", labels)
    for name in ("hint", "level", "source", "answer"):
        pool = pool.add_column(name, ["x"] * 20)
    trainer = make_trainer(pool, max_steps=1)
    callback = attach(trainer, 8, annotator="queue", answer_format="text", config=TriageConfig(probe_size=4))
    start = capsys.readouterr().out
    assert start.startswith("PivotTrace\n") and max(map(len, start.splitlines())) < 120
    assert parts(start) == {
        "Pool": "20 prompts; locked up: `solution`, `hint`, `level`, 2 others",
        "Labels": "5 rows have a `solution` already, which is yours and costs nothing; the budget is for the other 15",
        "Budget": "8 labels (53.3% of the others), from people, through the queue",
        "Probes": "4, your own labels first",
        "Answers": "read as text; `digit_reward` tells which are right",
        "Score": "TotalEntropy; labels are bought at each routing",
        "First": "answer all 20 prompts, in at most 12 tokens each",
    }
    trainer.train()
    callback.detach()
    capsys.readouterr()
    attach(make_trainer(pool), 8, annotator="queue", answer_format="text", config=TriageConfig(probe_size=4))
    folder = callback.output_dir / "survey"
    assert parts(capsys.readouterr().out)["First"] == f"go on with the first responses in {folder}, where they fit"


@pytest.mark.pictures
def test_the_end_tells_what_to_look_at_and_its_commands_run(make_trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(max_steps=2, output_dir=str(tmp_path / "a run"))
    callback = attach(trainer, 8, annotator="queue", answer_format="text", config=TriageConfig(probe_size=4))
    trainer.train()
    end = parts(capsys.readouterr().out.split("└")[-1])
    assert list(end) == ["Labels", "Votes", "Status", "Report", "Pictures", "Ledger"]
    assert end["Labels"] == "0 of 8 bought for a pool of 32 prompts, 32 of your own besides"
    folder, _, names = end["Pictures"].partition(": ")
    assert folder == str(callback.output_dir)
    assert all((callback.output_dir / name).is_file() for name in names.split(", "))
    for name in ("Status", "Report"):
        command = shlex.split(end[name].split("`")[1])
        assert command[0] == "pivottrace" and main(command[1:]) == 0, capsys.readouterr().err


def test_open_questions_are_counted_with_what_answers_them(make_trainer, capsys):
    trainer = make_trainer(make_pool(20).remove_columns("solution"), reward_funcs=digit_reward, max_steps=1)
    callback = attach(trainer, 8, annotator="queue", answer_format="text", config=TriageConfig(probe_size=4))
    trainer.train()
    end = parts(capsys.readouterr().out.split("└")[-1])
    run = callback.output_dir.parent
    assert callback.ledger.num_open > 0
    assert end["Queue"] == f"{callback.ledger.num_open} questions are open: `pivottrace desk {run}` answers them"


def test_annotators_are_named():
    class Endpoint:
        pass

    assert name_annotator([len, Endpoint(), "queue"]) == "`len`, then `Endpoint`, then people, through the queue"
    assert name_annotator(None) == "the dataset"
