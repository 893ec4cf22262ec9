"""Labels are bought within the budget, kept, and never read unless bought."""

import sqlite3
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import accuracy_reward

from pivottrace_trl import AnnotationLedger, Answer, Oracle, Query, pool_ids
from pivottrace_trl.labels import CallableAnnotator, LabelVault, Outcome

from ..conftest import make_pool


@pytest.fixture
def pool():
    return make_pool(50)


@pytest.fixture
def ids(pool):
    return pool_ids(pool)


@pytest.fixture
def open_ledger(tmp_path, ids):
    def make(budget=20, prompt_ids=None):
        return AnnotationLedger(tmp_path / "ledger.sqlite", budget, prompt_ids or ids)

    return make


def ask_for(ledger, ids, purpose="annotate", epoch=0):
    """Ask for labels, the first most valuable."""
    queries = [Query(i, f"text of {i}", purpose, "weak", float(-place), "7") for place, i in enumerate(ids)]
    ledger.request(queries, epoch)


def kinds(ledger):
    return [event["kind"] for event in ledger.events() if event["kind"] != "settings"]


def test_labels_come_only_by_buying(pool, ids, open_ledger):
    ledger, vault = open_ledger(), LabelVault(pool, ["solution"], ids)
    ask_for(ledger, [ids[3], ids[5]], "probe")
    assert ledger.label(ids[3]) is None
    assert ledger.buy(vault) == 2
    assert ledger.label(ids[3]) == {"solution": "6"} and ledger.author(ids[3]) == "dataset"
    assert ledger.label(ids[4]) is None
    ask_for(ledger, [ids[3]])
    assert ledger.queue() == [] and ledger.buy(vault) == 0  # nothing is bought twice
    assert (ledger.num_bought, ledger.num_left) == (2, 18)
    assert kinds(ledger) == ["request", "request", "answer", "answer"]
    answer = ledger.events()[-1]
    assert {name: answer[name] for name in ("prompt_id", "author", "price", "purpose", "route")} == {
        "prompt_id": ids[5],
        "author": "dataset",
        "price": 0.0,
        "purpose": "probe",
        "route": "weak",
    }


def test_budget_is_never_exceeded(pool, ids, open_ledger):
    ledger, vault = open_ledger(budget=20), LabelVault(pool, ["solution"], ids)
    ask_for(ledger, ids)
    assert ledger.buy(vault) == 20
    assert ledger.buy(vault) == 0
    assert [ledger.label(i) is not None for i in ids] == [True] * 20 + [False] * 30
    assert ledger.record([Answer(ids[30], {"solution": "1"}, "ann")]) == [Outcome.OVER_BUDGET]
    assert ledger.label(ids[30]) is None
    # The database itself holds the line, whatever the code above it thinks.
    with pytest.raises(sqlite3.IntegrityError, match="budget is spent"):
        ledger._file.connection.execute("INSERT INTO purchases (prompt_id) VALUES (?)", (ids[30],))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        open_ledger(budget=25)._file.connection.execute("INSERT INTO purchases (prompt_id) VALUES (?)", (ids[0],))


def test_two_connections_share_one_budget(pool, ids, open_ledger):
    first, second = open_ledger(budget=20), open_ledger(budget=20)
    vault = LabelVault(pool, ["solution"], ids)
    ask_for(first, ids[:15])
    first.buy(vault)
    ask_for(second, ids[20:40])
    assert second.buy(vault) == 5
    assert open_ledger().num_bought == 20
    first.refresh()
    assert first.label(ids[20]) is not None


def test_two_people_and_one_prompt(ids, open_ledger):
    first, second = open_ledger(), open_ledger()
    ask_for(first, ids[:5])
    assert first.record([Answer(ids[0], {"solution": "1"}, "ann")]) == [Outcome.RECORDED]
    assert second.record([Answer(ids[0], {"solution": "1"}, "bob")]) == [Outcome.DUPLICATE]
    for _ in range(2):  # the other answer is kept, once
        assert second.record([Answer(ids[0], {"solution": "2"}, "bob")]) == [Outcome.CONFLICT]
    assert second.label(ids[0]) == {"solution": "1"} and second.num_bought == 1
    assert kinds(second).count("unused") == 1
    assert second.record([Answer("stranger", {"solution": "2"}, "bob")]) == [Outcome.UNKNOWN]


def test_the_queue_follows_the_latest_routing(ids, open_ledger):
    ledger = open_ledger()
    probe = Query(ids[9], "nine", "probe", "weak", 0.1)
    ledger.request([Query(ids[0], "zero", score=1.0), Query(ids[1], "one", score=2.0), probe])
    assert [query.prompt for query in ledger.queue()] == ["nine", "one", "zero"]
    assert ledger.queue()[0] == probe
    count = len(ledger.events())
    ledger.request(ledger.queue(), epoch=1)
    assert len(ledger.events()) == count  # nothing new, nothing written
    ledger.request([Query(ids[2], "two", score=0.5), Query(ids[0], "zero", score=float("nan"))], epoch=1)
    assert [query.prompt for query in ledger.queue()] == ["two", "zero"]
    # Who had the old queue in hand may still answer it.
    assert ledger.record([Answer(ids[1], {"solution": "1"}, "ann")]) == [Outcome.RECORDED]


def test_skip_broken_and_undo(ids, open_ledger):
    ledger = open_ledger(budget=1)
    ask_for(ledger, ids[:3])
    ledger.skip(ids[0], "ann")
    assert [q.prompt_id for q in ledger.queue()] == [ids[1], ids[2], ids[0]]
    ledger.mark_broken(ids[1], "ann")
    assert ledger.has_declined(ids[1]) and [q.prompt_id for q in ledger.queue()] == [ids[2], ids[0]]
    ledger.record([Answer(ids[2], {"solution": "1"}, "ann")])
    assert ledger.undo("bob") is None  # everybody takes back their own
    assert ledger.undo("ann").prompt_id == ids[2]
    assert ledger.label(ids[2]) is None and ledger.num_left == 0
    assert ledger.record([Answer(ids[0], {"solution": "1"}, "ann")]) == [Outcome.OVER_BUDGET]
    # It was paid for: another answer costs nothing.
    assert ledger.record([Answer(ids[2], {"solution": "5"}, "ann")]) == [Outcome.RECORDED]
    assert [ledger.undo("ann").prompt_id for _ in range(3)] == [ids[2], ids[1], ids[0]]
    assert ledger.undo("ann") is None
    assert [q.prompt_id for q in ledger.queue()] == ids[:3]


def test_reopening_keeps_everything(pool, ids, open_ledger, tmp_path):
    ledger = open_ledger()
    ask_for(ledger, ids[:6])
    ledger.record([Answer(i, {"solution": str(n)}, "ann", price=0.5) for n, i in enumerate(ids[:4])])
    ledger.close()
    again = AnnotationLedger.open(tmp_path / "ledger.sqlite")
    assert again.num_bought == 4 and again.label(ids[2]) == {"solution": "2"}
    assert (again.budget, again.label_column, again.answer_format) == (20, "solution", "math")
    assert [q.prompt_id for q in again.queue()] == ids[4:6]
    assert sum(event["price"] for event in again.events()) == 2.0


def test_the_label_column_may_change(ids, open_ledger, tmp_path):
    ledger = open_ledger()
    ask_for(ledger, ids[:2])
    ledger.record([Answer(ids[0], {"solution": "1"}, "ann"), Answer(ids[1], {"solution": "2", "level": 3}, "dataset")])
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 20, ids, "answer")
    assert ledger.label(ids[0]) == {"answer": "1"} and ledger.label(ids[1]) == {"solution": "2", "level": 3}


def test_the_pool_may_change_but_not_be_another(ids, open_ledger):
    ledger = open_ledger()
    ask_for(ledger, ids[:2])
    ledger.record([Answer(ids[0], {"solution": "1"}, "ann")])
    assert open_ledger(prompt_ids=["new", *ids[::-1]]).label(ids[0]) is not None
    with pytest.raises(ValueError, match="belongs to another pool.*choose"):
        open_ledger(prompt_ids=["other"])
    assert open_ledger().num_bought == 1


def test_a_newer_ledger_is_refused(open_ledger, tmp_path):
    open_ledger().close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="version 99.*Use the release"):
        open_ledger()


@pytest.mark.parametrize("table", ["events", "purchases", "prompts"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET prompt_id = 'x'", "DELETE FROM {}"])
def test_the_file_is_append_only(table, statement, ids, open_ledger, tmp_path):
    ledger = open_ledger()
    ask_for(ledger, ids[:2])
    ledger.record([Answer(ids[0], {"solution": "1"}, "ann")])
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection, pytest.raises(sqlite3.Error, match="append-only"):
        connection.execute(statement.format(table))


def test_what_failed_half_way_left_nothing(ids, open_ledger):
    ledger = open_ledger()
    ask_for(ledger, ids[:3])
    before = ledger.events()
    with pytest.raises(ValueError, match="cannot be stored"):
        ledger.record([Answer(ids[0], {"solution": "1"}, "ann"), Answer(ids[1], {"solution": object()}, "ann")])
    assert ledger.events() == before and ledger.label(ids[0]) is None and ledger.num_bought == 0
    assert ledger.record([Answer(ids[0], {"solution": "1"}, "ann")]) == [Outcome.RECORDED]


class Saying:
    """An oracle that says what it is told to, one by one."""

    batch_size = 16

    def __init__(self, answers):
        self.answers = answers

    def ask(self, queries):
        yield from self.answers


def test_an_annotator_is_asked_with_rows(pool, ids, open_ledger):
    seen = []

    def annotator(rows):
        seen.extend(rows)
        return [None if "3+" in row["prompt"][0]["content"] else "7" for row in rows]

    ledger = open_ledger()
    oracle = CallableAnnotator(annotator)
    ask_for(ledger, ids[:5])
    assert ledger.buy(oracle, lambda wanted: [pool.select_columns("prompt")[ids.index(i)] for i in wanted]) == 4
    assert seen[0] == {"prompt": pool["prompt"][0]}
    assert ledger.label(ids[0]) == {"solution": "7"} and ledger.author(ids[0]) == "annotator"
    # Who declined is not asked again, and was not paid.
    assert ledger.has_declined(ids[3]) and ledger.label(ids[3]) is None and ledger.num_bought == 4
    ask_for(ledger, ids[:5])
    assert ledger.buy(oracle) == 0
    assert len(seen) == 5


@pytest.mark.parametrize("answers", [[], ["1"], ["1"] * 40])
def test_the_wrong_number_of_answers(answers, pool, ids, open_ledger):
    ledger = open_ledger()
    oracle = CallableAnnotator(lambda rows: answers)
    ask_for(ledger, ids[:5])
    with pytest.raises(RuntimeError, match=f"returned {len(answers)} answers for 5 rows"):
        ledger.buy(oracle)
    assert ledger.num_bought == 0


def test_what_an_annotator_returned_before_it_failed_is_kept(pool, ids, open_ledger):
    calls = []

    def annotator(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise ConnectionError("gone for lunch")
        return ["1"] * len(rows)

    ledger = open_ledger(budget=40)
    oracle = CallableAnnotator(annotator)
    ask_for(ledger, ids[:40])
    with pytest.raises(RuntimeError, match="ConnectionError: gone for lunch.*16 labels.*are kept") as info:
        ledger.buy(oracle)
    assert isinstance(info.value.__cause__, ConnectionError)
    assert open_ledger(budget=40).num_bought == 16
    assert ledger.buy(oracle) == 24


def test_what_an_oracle_yields_is_recorded_answer_by_answer(ids, open_ledger):
    ledger = open_ledger()
    recorded = []

    class Interrupted:
        batch_size = 16

        def ask(self, queries):
            for position in reversed(range(len(queries))):  # answers come in any order
                recorded.append(ledger.num_bought)
                yield Answer(queries[position].prompt_id, str(position), "maria", 0.25)
                if position == 2:
                    raise KeyboardInterrupt

    ask_for(ledger, ids[:6])
    with pytest.raises(KeyboardInterrupt):
        ledger.buy(Interrupted())
    assert recorded == [0, 1, 2, 3]
    assert [ledger.label(i) for i in ids[:6]] == [None, None, *({"solution": str(n)} for n in range(2, 6))]
    assert sum(event["price"] for event in ledger.events()) == 1.0 and ledger.author(ids[5]) == "maria"


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_an_oracle_says_how_many_queries_it_wants(batch_size, sizes, ids, open_ledger):
    asked = []

    class Counting:
        def __init__(self):
            self.batch_size = batch_size

        def ask(self, queries):
            asked.append([(query.prompt_id, query.purpose, query.suggestion, query.row) for query in queries])
            return [Answer(query.prompt_id, "1", "x") for query in queries]

    ledger = open_ledger()
    ask_for(ledger, ids[:5])
    assert isinstance(Counting(), Oracle) and ledger.buy(Counting()) == 5
    assert [len(batch) for batch in asked] == sizes
    assert asked[0][0] == (ids[0], "annotate", "7", {"prompt": f"text of {ids[0]}"})


def test_an_oracle_that_answers_something_else(ids, open_ledger):
    ledger = open_ledger()
    ask_for(ledger, ids[:3])
    with pytest.raises(RuntimeError, match="answered .* which it was not asked"):
        ledger.buy(Saying([Answer(ids[40], "1", "x")]))
    assert ledger.num_bought == 0


def test_empty_labels_cost_nothing(tmp_path):
    pool = Dataset.from_dict({"prompt": ["a", "b", "c"], "solution": ["1", None, ""]})
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 20, ids)
    ask_for(ledger, ids)
    assert ledger.buy(LabelVault(pool, ["solution"], ids)) == 1


@pytest.mark.parametrize("budget", [0.293, 1.0, float("nan"), float("inf"), True, -1, "20", None])
def test_a_budget_is_a_number_of_labels(budget, ids, tmp_path):
    with pytest.raises(ValueError, match="`budget` is .* must be a number of labels, such as 100"):
        AnnotationLedger(tmp_path / "run" / "ledger.sqlite", budget, ids)
    assert not (tmp_path / "run").exists()
    assert AnnotationLedger(tmp_path / "ledger.sqlite", np.int64(3), ids).budget == 3


def test_what_nobody_paid_for_is_never_written(ids, open_ledger, tmp_path):
    ledger = open_ledger(budget=1)
    ask_for(ledger, ids[:3])
    ledger.record([Answer(ids[0], {"solution": "bought"}, "ann")])
    for _ in range(2):
        assert ledger.record([Answer(ids[1], {"solution": "SECRET"}, "bob", 0.5)]) == [Outcome.OVER_BUDGET]
    assert [e["author"] for e in ledger.events() if e["kind"] == "unused"] == ["bob"]
    for path in tmp_path.iterdir():
        assert b"SECRET" not in path.read_bytes(), path
    # It can be answered again when there is a budget.
    assert open_ledger(budget=2).record([Answer(ids[1], {"solution": "SECRET"}, "bob")]) == [Outcome.RECORDED]


class Racing:
    """Answers, while another process spends the budget."""

    def __init__(self, other, ids):
        self.other, self.ids = other, ids

    batch_size = 16

    def ask(self, queries):
        self.other.record([Answer(i, {"solution": "other"}, "bob") for i in self.ids])
        return [Answer(query.prompt_id, {"solution": f"SECRET {query.prompt_id}"}, "oracle") for query in queries]


def test_labels_that_came_too_late_are_not_written(ids, open_ledger, tmp_path):
    ledger, other = open_ledger(budget=10), AnnotationLedger.open(tmp_path / "ledger.sqlite")
    ask_for(ledger, ids[:20])
    assert ledger.buy(Racing(other, ids[12:18])) == 4
    assert ledger.num_bought == 10
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert content.count(b"SECRET") == 4


EMPTY = [None, "", "  ", float("nan"), [], [None], [""], {}, {"value": None}, np.float64("nan")]


@pytest.mark.parametrize("value", EMPTY)
def test_an_empty_label_is_no_label(value, pool, ids, open_ledger):
    ledger = open_ledger()
    ask_for(ledger, ids[:2])
    if value == value and not isinstance(value, float):
        with pytest.raises(ValueError, match="is empty.*pass `label=None`"):
            ledger.record([Answer(ids[0], {"solution": value, "level": 3}, "ann")])
    else:
        with pytest.raises(ValueError, match="cannot be stored"):
            Answer(ids[0], {"solution": value}, "ann")
    assert ledger.num_bought == 0 and kinds(ledger) == ["request", "request"]
    oracle = CallableAnnotator(lambda rows: [value, "7"])
    assert ledger.buy(oracle) == 1 and ledger.has_declined(ids[0])


def test_empty_labels_of_a_dataset_cost_nothing(tmp_path):
    labels = [1.0, float("nan"), None, 4.0]
    columns = {"prompt": list("abcd"), "solution": labels, "hint": [float("nan"), 1.0, 1.0, 1.0]}
    pool = Dataset.from_dict(columns)
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 20, ids)
    ask_for(ledger, ids)
    assert ledger.buy(LabelVault(pool, ["solution", "hint"], ids)) == 2
    assert ledger.label(ids[0]) == {"solution": 1.0, "hint": None}
    assert [ledger.has_declined(i) for i in ids] == [False, True, True, False]


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_impossible_prices(price):
    with pytest.raises(ValueError, match="`price` is"):
        Answer("p", {"solution": "1"}, "ann", price)


def test_an_annotator_may_return_answers(pool, ids, open_ledger):
    def annotator(rows):
        return [Answer(i, str(n), "maria", 0.4) for n, i in enumerate(asked)]

    ledger = open_ledger()
    ask_for(ledger, ids[:3])
    asked = ids[:3]
    assert ledger.buy(CallableAnnotator(annotator)) == 3
    assert ledger.label(ids[2]) == {"solution": "2"} and ledger.author(ids[2]) == "maria"
    assert sum(event["price"] for event in ledger.events()) == pytest.approx(1.2)
    ask_for(ledger, ids[3:6])
    asked = ids[6:9]
    with pytest.raises(RuntimeError, match=f"answered '{ids[6]}' instead of '{ids[3]}'"):
        ledger.buy(CallableAnnotator(annotator))


@pytest.mark.parametrize("said", ["five", b"five", {"a": "5"}, iter([(0, "5", 0.1)])])
def test_what_is_no_list_of_answers(said, ids, open_ledger):
    ledger = open_ledger()
    ask_for(ledger, ids[:1])
    with pytest.raises(RuntimeError, match="returned .*, but must return a list.* pass an `Oracle`"):
        ledger.buy(CallableAnnotator(lambda rows: said))
    assert ledger.num_bought == 0


def test_labels_that_were_corrected_in_the_dataset(pool, ids, open_ledger, caplog):
    ledger = open_ledger()
    ask_for(ledger, ids[:6])
    ledger.record([Answer(ids[5], {"solution": "what ann says"}, "ann")])
    ledger.buy(LabelVault(pool, ["solution"], ids))
    assert ledger.take_corrections(LabelVault(pool, ["solution"], ids)) == [] and not caplog.text
    last = ledger.last_event
    right = {1: "right", 4: "", 5: "not asked", 20: "not bought"}
    labels = [right.get(n, label) for n, label in enumerate(pool["solution"])]
    corrected = pool.remove_columns("solution").add_column("solution", labels)
    shuffled = corrected.shuffle(seed=0)  # ids hold, not places
    vault = LabelVault(shuffled, ["solution"], pool_ids(shuffled))
    assert ledger.take_corrections(vault) == [ids[1]]
    assert f"for 1 prompts ({ids[1]})" in caplog.text
    assert ledger.label(ids[1]) == {"solution": "right"} and ledger.label(ids[0]) == {"solution": pool["solution"][0]}
    assert ledger.label(ids[5]) == {"solution": "what ann says"}
    assert ledger.label(ids[20]) is None and ledger.num_bought == 6
    assert [event["kind"] for event in ledger.events() if event["event_id"] > last] == ["undo", "answer"]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "answer", "decline", "skip", "broken", "undo", "reopen", "budget"]),
        st.integers(0, 7),
        st.sampled_from(["ann", "bob"]),
    ),
    max_size=40,
)


@settings(max_examples=40)
@given(actions=ACTIONS)
def test_whatever_people_do(actions, tmp_path_factory):
    """Against a model of a few lines: who is paid, what the labels are, what the queue holds."""
    path, ids = tmp_path_factory.mktemp("ledger") / "ledger.sqlite", [f"p{n}" for n in range(8)]
    budget, paid, labels = 4, set(), {}
    ledger = AnnotationLedger(path, budget, ids)
    for kind, number, author in actions:
        identity = ids[number]
        if kind == "ask":
            ledger.request([Query(i) for i in ids[number:]])
        elif kind == "answer":
            (outcome,) = ledger.record([Answer(identity, {"solution": str(number)}, author)])
            if outcome is Outcome.RECORDED:
                assert identity in paid or len(paid) < budget
                paid.add(identity)
                labels[identity] = {"solution": str(number)}
        elif kind == "decline":
            ledger.record([Answer(identity, None, author)])
        elif kind == "skip":
            ledger.skip(identity, author)
        elif kind == "broken":
            ledger.mark_broken(identity, author)
        elif kind == "undo":
            authors = {i: ledger.author(i) for i in labels}
            query = ledger.undo(author)
            lost = {i for i in labels if ledger.label(i) is None}
            assert lost <= {query.prompt_id} if query else not lost
            assert all(authors[i] == author for i in lost)
            labels = {i: label for i, label in labels.items() if i not in lost}
        elif kind == "budget":
            budget = number
            ledger.close()
            ledger = AnnotationLedger(path, budget, ids)
        else:
            ledger.close()
            ledger = AnnotationLedger.open(path)
        assert {i: ledger.label(i) for i in ids if ledger.label(i)} == labels
        assert ledger.num_bought == len(paid) and ledger.num_left == max(budget - len(paid), 0)
        assert not {q.prompt_id for q in ledger.queue()} & set(labels)
    ledger.close()


def test_answers_of_an_annotator_are_read_by_the_format(pool, ids, open_ledger, caplog):
    ledger = open_ledger()
    said = ["2pi", "I don't know", r"\boxed{7}", Answer(ids[3], "5 cm", "bob"), 4]
    ask_for(ledger, ids[:5])
    assert ledger.buy(CallableAnnotator(lambda rows: said)) == 3
    assert [ledger.label(i) for i in ids[:5]] == [
        {"solution": r"$2\pi$"}, None, {"solution": "7"}, None, {"solution": "4"}
    ]  # fmt: skip
    assert ledger.has_declined(ids[1]) and "is not used: math-verify reads only" in caplog.text


def test_the_answer_format_stays_once_there_are_labels(pool, ids, tmp_path):
    path = tmp_path / "ledger.sqlite"
    for name in ("text", "math"):
        AnnotationLedger(path, 5, ids, answer_format=name).close()
    ledger = AnnotationLedger(path, 5, ids, answer_format="math")
    ask_for(ledger, ids[:1])
    ledger.record([Answer(ids[0], {"solution": "5"}, "ann")])
    ledger.close()
    with pytest.raises(ValueError, match=r"holds 1 labels in the answer format 'math', .* is 'text'"):
        AnnotationLedger(path, 5, ids, answer_format="text")
    assert AnnotationLedger(path, 5, ids).label(ids[0]) == {"solution": "5"}


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (5, "5"),
        (5.0, "5.0"),
        (1e-7, "0.0000001"),
        (np.int64(-3), "-3"),
        (np.float32(0.1), "0.1"),
        (Fraction(1, 2), "1/2"),
        (Decimal("1.50"), "1.50"),
        (Answer("p0", 5, "me"), "5"),
        (Answer("p0", Fraction(1, 2), "me"), "1/2"),
        (float("inf"), None),
        (np.float64("nan"), None),
    ],
)
def test_numbers_of_an_annotator_are_labels_that_a_verifier_reads(tmp_path, said, label):
    """`accuracy_reward` gives no reward at all, not even 0, where the label is a number."""
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 1, ["p0"])
    ledger.request([Query("p0")])
    ledger.buy(CallableAnnotator(lambda rows: [said]))
    assert ledger.label("p0") == (None if label is None else {"solution": label})
    if label is not None:
        assert accuracy_reward([[{"content": rf"\boxed{{{label}}}"}]], [ledger.label("p0")["solution"]]) == [1.0]


def test_a_pair_is_no_answer(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 1, ["p0"])
    ledger.request([Query("p0")])
    with pytest.raises(RuntimeError, match=r"returned \('5', 0.1\) for a row"):
        ledger.buy(CallableAnnotator(lambda rows: [("5", 0.1)]))
    assert ledger.num_bought == 0
