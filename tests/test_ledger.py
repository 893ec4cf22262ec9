"""Labels are bought within the budget, kept, and never read unless bought."""

import sqlite3

import pytest
from datasets import Dataset

from pivottrace_trl import AnnotationLedger, CallableAnnotator, LabelVault, pool_fingerprint, pool_ids

from .conftest import make_pool


@pytest.fixture
def pool():
    return make_pool(50)


@pytest.fixture
def ids(pool):
    return pool_ids(pool)


@pytest.fixture
def open_ledger(tmp_path, ids):
    def make(budget=20, pool_id=None):
        return AnnotationLedger(tmp_path / "ledger.sqlite", budget, pool_id or pool_fingerprint(ids))

    return make


def test_labels_come_only_by_buying(pool, ids, open_ledger):
    ledger, vault = open_ledger(), LabelVault(pool, ["solution"], ids)
    assert ledger.label(ids[3]) is None
    assert ledger.buy([ids[3], ids[5]], vault, "probe", epoch=0) == 2
    assert ledger.label(ids[3]) == {"solution": "6"}
    assert ledger.label(ids[4]) is None
    assert ledger.buy([ids[3]], vault, "probe", epoch=0) == 0  # nothing is bought twice
    assert (ledger.num_bought, ledger.num_left) == (2, 18)
    assert [event["prompt_id"] for event in ledger.events()] == [ids[3], ids[5]]


def test_budget_is_never_exceeded(pool, ids, open_ledger):
    ledger, vault = open_ledger(budget=20), LabelVault(pool, ["solution"], ids)
    assert ledger.buy(ids, vault, "annotate", epoch=0) == 20
    assert ledger.buy(ids, vault, "annotate", epoch=1) == 0
    assert [ledger.label(i) is not None for i in ids] == [True] * 20 + [False] * 30


def test_two_connections_share_one_budget(pool, ids, open_ledger):
    first, second = open_ledger(budget=20), open_ledger(budget=20)
    vault = LabelVault(pool, ["solution"], ids)
    first.buy(ids[:15], vault, "annotate", epoch=0)
    with pytest.raises(RuntimeError, match="would exceed the budget of 20"):
        second.buy(ids[20:40], vault, "annotate", epoch=0)
    assert open_ledger().num_bought == 15


def test_reopening_keeps_everything(pool, ids, open_ledger):
    ledger = open_ledger()
    ledger.buy(ids[:4], LabelVault(pool, ["solution"], ids), "probe", epoch=0)
    ledger.close()
    again = open_ledger()
    assert again.num_bought == 4 and again.label(ids[2]) == {"solution": "4"}


def test_a_ledger_of_another_pool_is_refused(open_ledger):
    open_ledger().close()
    with pytest.raises(ValueError, match="belongs to another pool.*choose"):
        open_ledger(pool_id="other")


def test_a_newer_ledger_is_refused(open_ledger, tmp_path):
    open_ledger().close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="version 99.*Upgrade"):
        open_ledger()


@pytest.mark.parametrize("statement", ["UPDATE answers SET label = 'x'", "DELETE FROM answers"])
def test_the_file_is_append_only(statement, pool, ids, open_ledger, tmp_path):
    open_ledger().buy(ids[:2], LabelVault(pool, ["solution"], ids), "probe", epoch=0)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection, pytest.raises(sqlite3.Error, match="append-only"):
        connection.execute(statement)


def rows_of(pool, ids):
    return lambda wanted: [{"prompt": pool["prompt"][ids.index(i)]} for i in wanted]


def test_an_annotator_is_asked_with_rows(pool, ids, open_ledger):
    seen = []

    def annotator(rows):
        seen.extend(rows)
        return [None if "3+" in row["prompt"][0]["content"] else "7" for row in rows]

    ledger = open_ledger()
    oracle = CallableAnnotator(annotator, rows_of(pool, ids), "solution")
    assert ledger.buy(ids[:5], oracle, "probe", epoch=0) == 4
    assert set(seen[0]) == {"prompt"}
    assert ledger.label(ids[0]) == {"solution": "7"}
    # Who declined is not asked again, and was not paid.
    assert ledger.has_declined(ids[3]) and ledger.label(ids[3]) is None
    assert ledger.buy(ids[:5], oracle, "probe", epoch=0) == 0
    assert len(seen) == 5


@pytest.mark.parametrize("answers", [[], ["1"], ["1"] * 40])
def test_the_wrong_number_of_answers(answers, pool, ids, open_ledger):
    ledger = open_ledger()
    oracle = CallableAnnotator(lambda rows: answers, rows_of(pool, ids), "solution")
    with pytest.raises(RuntimeError, match=f"returned {len(answers)} answers for 5 rows"):
        ledger.buy(ids[:5], oracle, "probe", epoch=0)
    assert ledger.num_bought == 0


def test_what_an_annotator_returned_before_it_failed_is_kept(pool, ids, open_ledger):
    calls = []

    def annotator(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise ConnectionError("gone for lunch")
        return ["1"] * len(rows)

    ledger = open_ledger(budget=40)
    oracle = CallableAnnotator(annotator, rows_of(pool, ids), "solution")
    with pytest.raises(RuntimeError, match="ConnectionError: gone for lunch.*16 labels.*are kept") as info:
        ledger.buy(ids[:40], oracle, "annotate", epoch=0)
    assert isinstance(info.value.__cause__, ConnectionError)
    assert open_ledger(budget=40).num_bought == 16
    assert ledger.buy(ids[:40], oracle, "annotate", epoch=0) == 24


def test_empty_labels_cost_nothing(open_ledger):
    pool = Dataset.from_dict({"prompt": ["a", "b", "c"], "solution": ["1", None, ""]})
    ids = pool_ids(pool)
    ledger = open_ledger(pool_id=pool_fingerprint(ids))
    assert ledger.buy(ids, LabelVault(pool, ["solution"], ids), "probe", epoch=0) == 1
