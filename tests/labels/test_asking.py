"""`pivottrace annotate ask`: models answer the queue of a triage or a run."""

import json

import pytest

from pivottrace_trl import AnnotationLedger
from pivottrace_trl.cli import main

from .fake_endpoint import IDS


EACH = 300e-6


@pytest.fixture
def run(endpoint, ledger, monkeypatch):
    """The folder of a run whose training is not alive, and the command on it."""
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    folder = ledger.path.parent
    ledger.close()
    prices = ["--base-url", endpoint.url, "--prices", "1", "4"]
    return folder, lambda *options: main(["annotate", "ask", str(folder), *prices, *options])


def question(request):
    return int(request["messages"][-1]["content"].split()[-1][:-1])


def test_models_answer_and_people_get_what_they_disagree_on(run, endpoint, capsys):
    folder, ask = run
    endpoint.behave = lambda number, request: (
        (200, r"\boxed{99}") if request["model"] == "b" and question(request) < 5 else None
    )
    assert ask("--model", "a", "--model", "b", "--max-completion-tokens", "1000") == 0
    shown = capsys.readouterr().out
    assert "20 questions for a + b: 0.1" in shown and "at most, if no request is repeated" in shown
    assert "15 answered for 0.012; 5 stay in the queue for people. 15 of 20 labels are bought." in shown
    assert len(endpoint.requests) == 40
    # What was asked is not asked again; people see what the models said where they want it.
    assert ask("--model", "a", "--model", "b") == 0
    assert "0 questions for a + b: 0 at most" in capsys.readouterr().out and len(endpoint.requests) == 40
    path = folder / "queue.jsonl"
    for options, names in (([], []), (["--with-suggestions"], ["suggestion", "opinions"])):
        assert main(["annotate", "export", str(folder), *options]) == 0
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(row["prompt_id"] for row in rows) == IDS[:5]
        assert [name for name in ("suggestion", "opinions") if name in rows[0]] == names
    assert {row["opinions"] for row in rows} >= {"a: 3; b: 99"}
    # A third model is asked what the two disagreed on; what they said before stands.
    assert ask("--model", "c") == 0
    ledger = AnnotationLedger.open(folder / "ledger.sqlite")
    assert ledger.num_bought == 20 and ledger.author("p2") == "c"
    assert ledger.spent == pytest.approx(45 * EACH)


def test_samples_and_limits(run, endpoint, capsys):
    folder, ask = run
    assert ask("--model", "a", "--num-samples", "3", "--max-cost", "0.006", "--max-completion-tokens", "100") == 0
    assert "20 questions for a x 3: 0.006 at most" in capsys.readouterr().out
    ledger = AnnotationLedger.open(folder / "ledger.sqlite")
    assert (
        0 < ledger.num_bought < 20
        and ledger.spent <= 0.006
        and {ledger.author(i) for i in ledger.bought_ids} == {"a x 3"}
    )
    before = len(endpoint.requests)
    ledger.close()
    assert ask("--model", "a", "--num-samples", "3") == 0
    # Two votes settle each question; those of the first time count.
    assert len(endpoint.requests) == 40 > before


def test_without_prices_no_price_is_promised(run, endpoint, capsys):
    folder = str(run[0])
    assert main(["annotate", "ask", folder, "--base-url", endpoint.url, "--model", "a"]) == 0
    assert "20 questions for a: without --prices the cost is not known." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a", "--prices", "1", "4"], "--prices is given 2 times for 1 models"),
        (["--model", "a", "--model", "a"], "must be at least two with different names"),
        (["--model", "a", "--min-agreement", "0.3"], "--min-agreement is 0.3"),
        (["--model", "a", "--prices", "-1", "4"], "is not a price of at least 0"),
    ],
)
def test_what_makes_no_sense_is_one_line(options, message, run, endpoint, capsys):
    try:
        status = run[1](*options)
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err and not endpoint.requests


def test_a_failure_keeps_what_was_answered(run, endpoint, capsys):
    endpoint.behave = lambda number, request: (401, "who are you") if number > 5 else None
    assert run[1]("--model", "a", "--concurrency", "1") == 1
    assert "HTTP 401 Unauthorized" in capsys.readouterr().err
    ledger = AnnotationLedger.open(run[0] / "ledger.sqlite")
    assert ledger.num_bought == 5 and len(ledger.queue()) == 15
