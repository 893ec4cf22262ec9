"""What an answer costs, own labels, opinions and claims; and ledgers of the former version."""

import sqlite3
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pivottrace_trl import AnnotationLedger, Answer, Opinion, Query, annotation_status
from pivottrace_trl.answers import MathFormat
from pivottrace_trl.labels import Outcome, journal, recording, schema
from pivottrace_trl.labels import file as ledger_file
from pivottrace_trl.labels.pool_file import POOL_FILE, write_pool

from .test_ledger_file import everything, make_ledger


IDS = [f"p{number}" for number in range(12)]


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 2, IDS)
    ledger.request([Query(i, f"What is {i}?") for i in IDS[:6]])
    yield ledger
    ledger.close()


def say(ledger, identity, label, author="ann", price=0.5, **options):
    (outcome,) = ledger.record([Answer(identity, {"solution": label}, author, price)], MathFormat(), **options)
    return outcome


def own(ledger, identity, label, author="dataset", **options):
    return say(ledger, identity, label, author, 0.0, is_own=True, **options)


def kinds(ledger):
    return [event["kind"] for event in ledger.events() if event["kind"] not in ("settings", "request")]


def test_own_labels_cost_nothing(ledger, tmp_path):
    assert own(ledger, "p0", "7") is Outcome.RECORDED  # asked for
    assert own(ledger, "p9", "8") is Outcome.RECORDED  # never asked for
    assert own(ledger, "p9", "8") is Outcome.DUPLICATE
    for view in (ledger, AnnotationLedger.open(tmp_path / "ledger.sqlite")):
        assert (view.num_bought, view.num_left, view.spent) == (0, 2, 0.0)
        assert view.own_ids == {"p0", "p9"} and view.bought_ids == set()
        assert view.label("p9") == {"solution": "8"} and view.author("p9") == "dataset"
        assert "p0" not in {query.prompt_id for query in view.queue()}
    ledger.request([Query(i) for i in IDS])
    assert not {"p0", "p9"} & {query.prompt_id for query in ledger.queue()}


def test_a_bought_answer_that_contradicts_an_own_label(ledger):
    own(ledger, "p0", "7")
    assert say(ledger, "p0", "8") is Outcome.CONFLICT and ledger.label("p0") == {"solution": "7"}
    assert say(ledger, "p0", "14/2") is Outcome.DUPLICATE  # the same number
    assert (ledger.num_bought, ledger.spent) == (0, 0.0)
    # What takes its place is bought, like any other answer.
    assert say(ledger, "p0", "8", replace=True) is Outcome.RECORDED
    assert (ledger.num_bought, ledger.spent, ledger.own_ids) == (1, 0.5, set())
    say(ledger, "p1", "1")
    own(ledger, "p2", "2")
    assert say(ledger, "p2", "3", replace=True) is Outcome.OVER_BUDGET
    assert ledger.label("p2") == {"solution": "2"} and ledger.own_ids == {"p2"}


def test_an_own_label_that_contradicts_a_bought_answer(ledger):
    say(ledger, "p0", "7")
    assert own(ledger, "p0", "7") is Outcome.DUPLICATE
    assert own(ledger, "p0", "8") is Outcome.CONFLICT and ledger.label("p0") == {"solution": "7"}
    # It stays paid for, and nothing comes back.
    assert own(ledger, "p0", "8", replace=True) is Outcome.RECORDED
    assert (ledger.num_bought, ledger.spent, ledger.own_ids) == (1, 0.5, {"p0"})
    assert ledger.author("p0") == "dataset" and "p0" not in {query.prompt_id for query in ledger.queue()}
    assert kinds(ledger) == ["answer", "unused", "undo", "own"]


def test_people_do_not_take_back_own_labels(ledger):
    own(ledger, "p0", "7", author="ann")
    ledger.skip("p1", "ann")
    assert ledger.undo("ann").prompt_id == "p1" and ledger.undo("ann") is None
    assert ledger.label("p0") == {"solution": "7"}
    # An answer that took the place of one is taken back like any other, and is paid for.
    say(ledger, "p0", "8", replace=True)
    assert ledger.undo("ann").prompt_id == "p0" and ledger.label("p0") is None
    assert own(ledger, "p0", "7") is Outcome.RECORDED and ledger.num_bought == 1


def test_an_own_label_of_a_prompt_that_was_called_broken(ledger):
    ledger.mark_broken("p0", "ann")
    own(ledger, "p0", "7")
    assert not ledger.has_declined("p0") and ledger.label("p0") == {"solution": "7"}
    assert ledger.record([Answer("p0", None, "bob")]) == [Outcome.DECLINED] and ledger.label("p0") is not None


def test_what_is_not_used_is_not_charged(ledger):
    say(ledger, "p0", "7", price=1.0)
    say(ledger, "p1", "7", price=1.0)
    assert say(ledger, "p0", "8", "bob", price=4.0) is Outcome.CONFLICT
    assert say(ledger, "p2", "8", "bob", price=4.0) is Outcome.OVER_BUDGET
    ledger.record([Answer("p3", None, "eve", 0.25)])
    assert ledger.spent == annotation_status(ledger).price == sum(e["price"] for e in ledger.events()) == 2.25
    query = "SELECT json_extract(value, '$.price') FROM events WHERE kind = 'unused'"
    assert ledger._file.connection.execute(query).fetchall() == [(4.0,), (4.0,)]


def test_opinions_stand_beside_what_came_of_them(ledger):
    said = {
        "small": ("7", 0.1, False),
        "large": ("7.0", 0.4, False),
        "shy": (None, 0.2, False),
        "dead": (None, 0.3, True),
    }
    models = {i: tuple(Opinion(i, s[0], author, *s[1:]) for author, s in said.items()) for i in ("p0", "p1")}
    assert ledger.record([*models["p0"], Answer("p0", "7", "vote")]) == [Outcome.OPINION] * 4 + [Outcome.RECORDED]
    ledger.record([*models["p1"], Answer("p1", None, "vote", 0.05)])
    for identity in ("p0", "p1"):
        assert ledger.opinions(identity) == models[identity]
    assert ledger.opinions("p2") == () and ledger.has_declined("p1")
    assert kinds(ledger) == ["opinion"] * 4 + ["answer"] + ["opinion"] * 4 + ["decline"]
    assert ledger.spent == pytest.approx(2.05) and ledger.num_bought == 1
    assert ledger.record([Opinion("p99", "7", "small", 0.1)]) == [Outcome.UNKNOWN]
    # An opinion settles nothing: the question is open, and nothing is a label.
    ledger.record([Opinion("p2", "1", "small", 0.1)])
    assert ledger.label("p2") is None and ledger.query("p2") is not None and not ledger.has_declined("p2")
    # What nobody paid for is not written, whoever said it; what it cost is.
    say(ledger, "p2", "1")
    secret = (Opinion("p3", "SECRET", "large", 0.4), Answer("p3", {"solution": "SECRET"}, "vote", 0.1))
    assert ledger.record(secret) == [Outcome.OPINION, Outcome.OVER_BUDGET]
    assert ledger.opinions("p3") == (Opinion("p3", None, "large", 0.4, has_failed=True),)
    for path in ledger.path.parent.iterdir():
        assert b"SECRET" not in path.read_bytes(), path


@pytest.mark.parametrize("wrong", [{"label": object()}, {"label": "7", "price": -1.0}])
def test_an_opinion_that_cannot_be_kept(wrong):
    with pytest.raises(ValueError, match="cannot be stored|`price` is"):
        Opinion("p0", author="small", **wrong)


def test_a_claimed_question_stays_in_the_queue(ledger, monkeypatch):
    assert ledger.claim("p0", "ann") and ledger.claim("p0", "ann")
    assert not ledger.claim("p0", "bob") and ledger.claimant("p0") == "ann"
    assert not ledger.claim("p9", "ann")  # nobody asks for it
    ledger.request([Query("p5")])
    assert {query.prompt_id for query in ledger.queue()} == {"p0", "p5"}
    later = datetime.now(timezone.utc) + timedelta(minutes=61)
    for module in (journal, recording):
        monkeypatch.setattr(module, "now", lambda: later)
    assert ledger.claimant("p0") is None and ledger.claim("p0", "bob") and ledger.claimant("p0") == "bob"
    ledger.skip("p0", "ann")  # not hers any more
    assert ledger.claimant("p0") == "bob"
    ledger.skip("p0", "bob")
    assert ledger.claimant("p0") is None
    ledger.request([Query("p5")])
    assert [query.prompt_id for query in ledger.queue()] == ["p5"]


@pytest.mark.parametrize(
    "end", [lambda ledger: say(ledger, "p0", "7"), lambda ledger: ledger.mark_broken("p0", "ann")]
)
def test_a_claim_ends_with_the_answer(end, ledger, tmp_path):
    ledger.claim("p0", "ann")
    assert AnnotationLedger.open(tmp_path / "ledger.sqlite").claimant("p0") == "ann"
    end(ledger)
    assert ledger.claimant("p0") is None
    ledger.undo("ann")
    assert ledger.claimant("p0") is None and ledger.query("p0") is not None


def test_the_queue_goes_by_what_a_label_is_worth(ledger, tmp_path):
    queries = [
        Query("p0", score=9.0),
        Query("p1", score=1.0, value=0.2, suggestion="4", agreement=0.5),
        Query("p2", score=2.0, value=0.7),
        Query("p3", "probe", "probe", score=0.0),
        Query("p4", value=float("nan"), agreement=float("inf")),
    ]
    ledger.request(queries)
    for view in (ledger, AnnotationLedger.open(tmp_path / "ledger.sqlite")):
        assert [query.prompt_id for query in view.queue()] == ["p3", "p2", "p1", "p0", "p4"]
        assert (view.query("p1").value, view.query("p1").agreement) == (0.2, 0.5)
        assert (view.query("p4").value, view.query("p4").agreement) == (None, None)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "answer", "own", "broken", "undo", "reopen"]),
        st.integers(0, 5),
        st.sampled_from(["1", "2"]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(actions=ACTIONS)
def test_whatever_order_labels_come_in(actions, tmp_path_factory):
    """Nothing is paid for twice, own labels are free, and the file agrees with memory."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    ledger, paid, has_label = AnnotationLedger(path, 3, IDS), set(), {}
    write_pool(path.with_name(POOL_FILE), IDS, lambda rows: map(str, rows))
    for kind, number, label, replace in actions:
        identity, before = IDS[number], ledger.label(IDS[number])
        if kind == "ask":
            ledger.request([Query(i) for i in IDS[number:6]])
        elif kind == "answer":
            outcome = say(ledger, identity, label, replace=replace)
            if outcome is Outcome.RECORDED:
                paid.add(identity)
                has_label[identity] = False
        elif kind == "own":
            outcome = own(ledger, identity, label, replace=replace)
            assert outcome in (Outcome.RECORDED, Outcome.DUPLICATE, Outcome.CONFLICT)
            if outcome is Outcome.RECORDED:
                assert ledger.label(identity) == {"solution": label} and (before is None or replace)
                has_label[identity] = True
        elif kind == "broken":
            ledger.mark_broken(identity, "ann")
        elif kind == "undo":
            if (query := ledger.undo("ann")) is not None and ledger.label(query.prompt_id) is None:
                has_label.pop(query.prompt_id, None)
        else:
            ledger.close()
            ledger = AnnotationLedger.open(path)
        assert ledger.num_bought == len(paid) <= 3
        assert ledger.own_ids == {i for i, is_own in has_label.items() if is_own}
        assert ledger.bought_ids == {i for i, is_own in has_label.items() if not is_own} <= paid
        assert not {query.prompt_id for query in ledger.queue()} & has_label.keys()
    ledger.close()


def write_as_before(path):
    """A ledger as the former version wrote it."""
    with pytest.MonkeyPatch.context() as patch:
        create = schema.create_tables
        patch.setattr(ledger_file, "SCHEMA_VERSION", 3)
        patch.setattr(ledger_file, "create_tables", lambda connection: create(connection, 3))
        make_ledger(path).close()


def test_a_ledger_of_the_former_version_is_taken_over(tmp_path):
    path = tmp_path / "ledger.sqlite"
    write_as_before(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    tables = {
        name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in ("prompts", "events", "purchases")
    }
    connection.close()
    make_ledger(tmp_path / "new" / "ledger.sqlite").close()
    expected = everything(tmp_path / "new" / "ledger.sqlite")
    found = everything(path)
    assert found[:4] == expected[:4] and len(found[4]) == len(expected[4])
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert tables == {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    connection.close()
    ledger = AnnotationLedger(path, 8, IDS)
    assert own(ledger, "p11", "7") is Outcome.RECORDED and say(ledger, "p9", "7") is Outcome.RECORDED
    assert ledger.num_bought == 7  # purchases go on with the next number


def test_a_damaged_ledger_of_the_former_version_stays_as_it_is(tmp_path):
    path = tmp_path / "ledger.sqlite"
    write_as_before(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b'"label p1"') + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        AnnotationLedger(path, 8, IDS)
    assert path.read_bytes() == content


def test_a_take_over_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    write_as_before(path)
    # The last table is filled after all others were made anew.
    monkeypatch.setattr(schema, "_TABLES", ("prompts", "events", "purchases", "nothing"))
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        AnnotationLedger.open(path)
    monkeypatch.undo()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    connection.close()
    assert AnnotationLedger.open(path).num_bought == 6
