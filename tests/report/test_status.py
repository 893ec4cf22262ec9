"""What labels cost and brought, in words and as JSON."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pivottrace_trl import AnnotationLedger, Answer, Query, annotation_status
from pivottrace_trl.cli import main
from pivottrace_trl.labels import Opinion, Tally
from pivottrace_trl.labels import journal as journal_module
from pivottrace_trl.report.status import describe_status, label_gains


NAN = float("nan")
IDS = [f"p{letter}" for letter in "abcdefgh"]


@pytest.fixture
def clock(monkeypatch):
    """The time as the ledger writes it; an hour of work, a pause, some minutes of work."""
    clock = {"ago": timedelta()}
    monkeypatch.setattr(journal_module, "now", lambda: datetime.now(timezone.utc) - clock["ago"])
    return clock


@pytest.fixture
def ledger(clock, tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS)
    ledger.request([Query(i, "?", "probe" if i in "papb" else "annotate", "weak") for i in IDS])
    for minutes, answer in (
        (300, Answer("pa", "1", "maria", 0.5)),
        (40, Answer("pb", "2", "maria", 0.5)),
        (30, Answer("pc", "3", "maria", 0.5)),
        (20, Opinion("pd", "4.0", "x", 0.125)),
        (20, Opinion("pd", "9", "y", 0.125)),
        (20, Answer("pd", "4", "a big model")),
        (10, Answer("pa", "7", "eve", 9.0)),
    ):
        clock["ago"] = timedelta(minutes=minutes)
        ledger.record([answer])
    ledger.undo("maria")
    ledger.record([Answer("pe", None, "maria", 0.25), Answer("pf", "6", "dataset")])
    ledger.record([Answer("pg", "7", "dataset")], is_own=True)
    return ledger


def test_what_it_cost(ledger):
    status = annotation_status(ledger)
    assert (status.budget, status.bought, status.left, status.own) == (6, 5, 1, 1)
    # What was undone was paid for; who contradicted was not paid.
    assert status.price == ledger.spent == 2.0
    assert status.purposes == {"annotate": Tally(2, 0.5), "probe": Tally(2, 1.0)}
    assert status.routes == {"weak": Tally(4, 1.5)}
    assert sum(tally.price for tally in status.purposes.values()) + 0.25 + 0.25 == status.price
    authors = {author.author: author for author in status.authors}
    assert sum(author.price for author in status.authors) == status.price
    maria = authors["maria"]
    assert (maria.answers, maria.price, maria.contradicted, maria.taken_back) == (2, 1.75, 1, 1)
    assert authors["dataset"].answers == 2 and "eve" not in authors
    assert [(authors[name].opinions, authors[name].opinions_upheld) for name in "xy"] == [(1, 1), (1, 0)]
    assert (status.conflicts, status.over_budget, status.declined) == (1, 0, 1)
    assert status.queue == {"probe": 0, "annotate": 2}
    assert (status.last_hour, status.last_day) == (3, 4)
    assert status.per_hour == pytest.approx(3 / (290 / 60), rel=0.01)


def test_in_words(ledger, tmp_path, capsys):
    assert main(["annotate", "status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for line in (
        "Labels    5 of 6 bought (83%), 1 left; 1 of your own besides",
        "Paid      2.00 in all, 0.40 a label; at this price the 1 left cost 0.40",
        "For       2 where the policy is unsure (0.50), 2 as probes (1.00)",
        "Routes    when asked for: 4 weak (1.50)",
        "Queue     2 questions: 0 probes, 2 others",
        "Pace      3 answers in the last hour, 4 in the last 24; the latest about 10 min ago; at this pace the queue "
        "is empty in about 3 h",
        "          maria: 2 labels, 1.75; 1 contradicted by others; 1 taken back",
        "          x: 0 labels, 0.12; 1 of 1 opinions became the label",
        "No answer 0 called broken, 1 declined",
        "Not used  1 contradict a label that stands, 0 came over the budget: not charged",
        "Brought   not known yet: no training has used these labels",
    ):
        assert line in said.splitlines(), said
    assert main(["annotate", "status", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["price"] == 2.0 and told["authors"][0]["author"] == "dataset" and told["gains"]["num_routings"] == 0


def test_before_the_first_answer(tmp_path, capsys):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 0, IDS)
    text = describe_status(annotation_status(ledger), label_gains(ledger))
    assert "0 of 0 bought, 0 left" in text and "nobody has answered yet" in text and "not known yet" in text


def write_tables(folder, *tables):
    for epoch, (labelled, pass_rate, agreement, routes) in enumerate(tables):
        columns = {
            "prompt_id": IDS,
            "route": routes.split(),
            "is_labelled": np.array([letter == "x" for letter in labelled]),
            "pass_rate": np.array(pass_rate, float),
            "agreement": np.array(agreement, float),
        }
        pq.write_table(pa.table(columns), folder / f"routes-epoch-{epoch:03d}.parquet")


def test_what_it_brought(ledger, tmp_path):
    some, none = "annotate annotate weak weak weak weak annotate weak", [NAN] * 8
    known = [0, 1, NAN, NAN, NAN, NAN, 0, NAN]
    write_tables(tmp_path, ("xx....x.", known, none, some))
    gains = label_gains(ledger)
    assert (gains.num_verified, gains.pass_rate_at_first, gains.pass_rate_now, gains.num_trained) == (
        3,
        1 / 3,
        1 / 3,
        0,
    )
    # Row 3 got its label later; row 6 was not trained on since.
    later = [0.75, 0.25, NAN, 0, NAN, NAN, 0, NAN]
    agreement = [0.75, 0.5, 0.5, 0.5, NAN, NAN, NAN, NAN]
    write_tables(tmp_path, ("xx....x.", known, none, some), ("xx.x..x.", later, agreement, some))
    gains = label_gains(ledger)
    assert (gains.num_verified, gains.pass_rate_at_first, gains.pass_rate_now) == (4, 0.25, 0.25)
    assert (gains.num_trained, gains.num_upheld) == (2, 1)
    assert gains.trained_by_author == {"maria": 2} and gains.upheld_by_author == {"maria": 1}
    assert gains.routes == {"annotate": 3, "weak": 1}
    text = describe_status(annotation_status(ledger), gains)
    assert "maria: 2 labels, 1.75; later rollouts came to 1 of 2" in text
    assert (
        "Brought   on 4 labelled prompts 25% of responses were right when the label came, 25% at the latest routing; "
        "of 2 trained on since, the majority is right on 1" in text
    )
    (tmp_path / "routes-epoch-001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="routes-epoch-001.parquet cannot be read"):
        label_gains(ledger)
