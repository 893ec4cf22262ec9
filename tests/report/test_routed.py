"""The pool with its routes, for trainers that cannot take our sampler."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from pivottrace_trl import AnnotationLedger, Answer, Query, pool_ids
from pivottrace_trl.cli import main
from pivottrace_trl.report import routed_dataset


NAN = float("nan")
ROUTES = ["discard", "weak", "weak", "weak", "annotate", "annotate", "weak", "discard"]
AGREEMENT = [NAN, 0.75, 0.0, NAN, 1.0, 0.5, 0.5, NAN]
ANSWERS = [None, "2", "old", "first", "5", "6", "7", None]
SECRET = "unbought"


@pytest.fixture
def pool():
    prompts = [[{"role": "user", "content": f"{i}+1=?"}] for i in range(8)]
    return Dataset.from_dict({"prompt": prompts, "solution": [f"{SECRET} {i}" for i in range(8)]})


@pytest.fixture
def ledger(pool, tmp_path):
    """Rows 4 and 7 have a bought label, and row 6 since the routing; rows 5 waits for one."""
    ids = pool_ids(pool)
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 4, ids)
    ledger.request([Query(i, f"question {n}") for n, i in enumerate(ids)])
    ledger.record([Answer(ids[4], "5", "ann"), Answer(ids[7], "8", "ann"), Answer(ids[6], "9", "ann")])
    return ledger


def write_table(ledger, ids, name="routes-epoch-001.parquet"):
    columns = {
        "prompt_id": ids,
        "route": ROUTES,
        "score": np.arange(8) / 10,
        "is_labelled": [False] * 8,
        "pass_rate": [NAN] * 8,
        "agreement": AGREEMENT,
        "answer": pa.array(ANSWERS, pa.string()),
    }
    pq.write_table(pa.table(columns), ledger.path.with_name(name))


def test_a_pool_with_its_routes(ledger, pool):
    write_table(ledger, pool_ids(pool), "routes-epoch-000.parquet")
    write_table(ledger, pool_ids(pool))
    routed = routed_dataset(ledger, pool)
    assert routed.column_names == [
        *("prompt_id", "prompt", "solution", "route", "score", "agreement", "pseudo_label", "weight")
    ]
    assert routed["prompt"][:] == pool["prompt"][:] and SECRET not in str(routed.to_list())
    assert routed["solution"][:] == [None] * 4 + ["5", None, "9", "8"]
    # Row 5 was never answered, row 6 was answered since.
    assert routed["route"][:] == ["discard", "weak", "weak", "weak", "annotate", "weak", "annotate", "discard"]
    # A group without a majority has no vote, a single response is none, and a label needs none.
    assert routed["pseudo_label"][:] == [None, "2", None, None, None, "6", None, None]
    assert routed["weight"][:] == [0.0, 0.75, 0.0, 0.0, 1.0, 0.5, 1.0, 0.0]
    assert routed["agreement"][:3] == [None, 0.75, 0.0]
    # Filtered, in another order, and as questions.
    assert routed_dataset(ledger, pool.select([6, 1]))["weight"][:] == [1.0, 0.75]
    assert routed_dataset(ledger)["prompt"][:] == [f"question {n}" for n in range(8)]


def test_after_a_triage_nothing_is_voted(ledger, pool, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="There are no routes in .*Let a training or a triage route the pool"):
        routed_dataset(ledger)
    write_table(ledger, pool_ids(pool), "routes.parquet")
    before = (tmp_path / "routes.parquet").read_bytes()
    for file_format in ("csv", "parquet", "jsonl"):
        assert main(["annotate", "export", str(tmp_path), "--routes", "--format", file_format]) == 0
    assert "8 prompts with routes in" in capsys.readouterr().out
    assert (tmp_path / "routes.parquet").read_bytes() == before  # the export has a name of its own
    rows = [json.loads(line) for line in (tmp_path / "routed.jsonl").read_text().splitlines()]
    assert [row["weight"] for row in rows] == [0, 0, 0, 0, 1, 0, 1, 0] and not any(r["pseudo_label"] for r in rows)


def test_another_pool(ledger, pool):
    write_table(ledger, [f"other {n}" for n in range(8)])
    with pytest.raises(ValueError, match="None of the 8 prompts has a route in"):
        routed_dataset(ledger, pool)
