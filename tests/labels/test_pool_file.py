"""The pool beside its ledger, and answers to what nobody asked for."""

import json
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest

from pivottrace_trl import AnnotationLedger, Answer, Query, import_answers
from pivottrace_trl.cli import main
from pivottrace_trl.labels import Outcome
from pivottrace_trl.labels.pool_file import POOL_FILE, find_question, read_pool_ids, write_pool

from ..conftest import attach, make_pool


IDS = [f"p{number}" for number in range(12)]


def texts(rows):
    return [f"What is {row}?" for row in rows]


@pytest.fixture
def run(tmp_path):
    """The folder of a run that asked for half of its pool, with the ledger of the run."""
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, IDS)
    write_pool(tmp_path / POOL_FILE, IDS, texts)
    ledger.request([Query(i, f"What is {i}?") for i in IDS[:6]])
    yield tmp_path, ledger
    ledger.close()


def take(folder, rows, **options):
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt_id": i, "answer": answer}) + "\n" for i, answer in rows))
    ledger = AnnotationLedger.open(folder / "ledger.sqlite")
    try:
        return import_answers(ledger, path, "ann", progress=False, **options)
    finally:
        ledger.close()


def test_the_pool_is_written_in_its_order(tmp_path):
    path = tmp_path / POOL_FILE
    write_pool(path, IDS[::-1], texts)
    assert pq.read_table(path).to_pydict() == {
        "prompt_id": IDS[::-1],
        "question": texts(range(12)),
    }
    assert read_pool_ids(path) == set(IDS) and find_question(path, "p0") == "What is 11?"
    assert find_question(path, "q") is None and read_pool_ids(tmp_path / "nothing") == frozenset()
    for other in (IDS, IDS[:5]):
        write_pool(path, other, texts)
        assert pq.read_table(path)["prompt_id"].to_pylist() == other
    for damage in (b"", b"no table", path.read_bytes()[:-20]):
        path.write_bytes(damage)
        write_pool(path, IDS, texts)
        assert len(read_pool_ids(path)) == 12


def test_other_questions_under_the_same_ids_are_told(tmp_path, caplog):
    path = tmp_path / POOL_FILE
    write_pool(path, IDS[:4], texts)
    write_pool(path, IDS[::-1], lambda rows: [f" What is {11 - row}? \n" for row in rows])
    assert not caplog.messages  # another order, more rows, other blanks
    write_pool(path, IDS, lambda rows: ["What was 3?" if row == 3 else f"What is {row}?" for row in rows])
    (message,) = caplog.messages
    assert "other questions now than before under the same ids, for 1 prompts (p3). Labels that" in message
    assert find_question(path, "p3") == "What was 3?"


def test_a_damaged_pool_is_named(run):
    folder, _ = run
    (folder / POOL_FILE).write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"pool\.parquet cannot be read .*Start the run or the triage again"):
        take(folder, [("p9", "1")])


def test_answers_to_what_nobody_asked_for(run):
    folder, ledger = run
    report = take(
        folder, [("p0", "1"), ("p9", "2"), ("stranger", "3"), ("p9", ""), ("p9", "5"), ("p10", "4"), ("p11", "7")]
    )
    assert (report.recorded, report.unanswered) == (3, 1)
    assert report.reasons == {"unknown prompt": 1, "conflict": 1, "over budget": 1}
    assert "it is not in the pool of this run" in report.rejected_path.read_text()
    # The run that is alive knows them, and does not ask for them.
    ledger.refresh()
    assert ledger.num_bought == 3 and ledger.label("p9") == {"solution": "2"} and ledger.label("p11") is None
    ledger.request([Query(i) for i in IDS])
    assert {"p0", "p9", "p10"}.isdisjoint(query.prompt_id for query in ledger.queue())
    assert take(folder, [("p9", "2")]).duplicates == 1
    for path in folder.glob("ledger*"):
        assert b'"7"' not in path.read_bytes()  # over budget


def test_an_answer_to_what_nobody_asked_for_can_be_taken_back(run):
    folder, ledger = run
    take(folder, [("p9", "2")])
    ledger.refresh()
    query = ledger.undo("ann")
    assert (query.prompt_id, query.prompt, query.purpose) == ("p9", "What is 9?", "annotate")
    assert ledger.query("p9") == query in ledger.queue() and ledger.num_bought == 1
    # Like everything that is asked: whoever looks at the queue need not look through the pool.
    (folder / POOL_FILE).rename(folder / "moved.parquet")
    assert AnnotationLedger.open(ledger.path).query("p9") == query
    (folder / "moved.parquet").rename(folder / POOL_FILE)
    assert take(folder, [("p9", "3")]).recorded == 1
    ledger.refresh()
    assert ledger.label("p9") == {"solution": "3"} and ledger.num_bought == 1


def test_a_run_without_a_pool_beside_it_knows_what_it_asked_for(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 3, IDS)
    ledger.request([Query("p0")])
    beside = AnnotationLedger.open(tmp_path / "ledger.sqlite")
    answers = [Answer(i, {"solution": "1"}, "ann") for i in ("p0", "p1")]
    assert beside.record(answers) == [Outcome.RECORDED, Outcome.UNKNOWN]
    assert ledger.record(answers) == [Outcome.DUPLICATE, Outcome.RECORDED]


def test_own_labels_from_a_file(run, capsys):
    folder, ledger = run
    path = folder / "mine.csv"
    path.write_text("prompt_id,answer,price,author\np1,1,9.5,maria\np9,2,9.5,\nx,1,,\n")
    assert main(["annotate", "import", str(folder), str(path), "--own", "--author", "me"]) == 0
    assert "2 labels of your own recorded" in capsys.readouterr().out
    ledger.refresh()
    assert (ledger.num_bought, ledger.spent, ledger.own_ids) == (0, 0.0, {"p1", "p9"})
    assert (ledger.author("p1"), ledger.author("p9")) == ("maria", "me")
    # Bought before, and the other way round: what stands stays, unless it is to be replaced.
    assert take(folder, [("p2", "1")]).recorded == 1
    assert take(folder, [("p2", "2")], is_own=True).reasons == {"conflict": 1}
    assert take(folder, [("p1", "2")]).reasons == {"conflict": 1}
    assert take(folder, [("p2", "2")], is_own=True, replace=True).recorded == 1
    assert take(folder, [("p1", "2")], replace=True).recorded == 1
    ledger.refresh()
    assert ledger.own_ids == {"p2", "p9"} and ledger.num_bought == 2  # both were paid for once
    assert ledger.label("p2") == ledger.label("p1") == {"solution": "2"}


def test_the_pool_of_a_trainer_is_beside_its_ledger(make_trainer):
    callback = attach(make_trainer(make_pool(12)), annotator="queue")
    path = callback.output_dir / POOL_FILE
    table = pq.read_table(path).to_pydict()
    assert table["prompt_id"] == callback.router.prompt_ids and table.keys() == {"prompt_id", "question"}
    assert table["question"] == [prompt[-1]["content"] for prompt in make_pool(12)["prompt"]]


MILLION = """
import resource, sys, time
from pathlib import Path
from pivottrace_trl.labels.pool_file import read_pool_ids, write_pool
ids = [f"abcdefgh{number:08d}" for number in range(300_000)]
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
write_pool(Path(sys.argv[1]), ids, lambda rows: (f"What is {row} and all that? " * 20 for row in rows))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert read_pool_ids(Path(sys.argv[1])) == frozenset(ids)
print((after - before) // 1024, time.monotonic() - start)
"""


def test_a_large_pool_takes_little_memory(tmp_path):
    """150 MB of questions are never in memory together."""
    command = [sys.executable, "-c", textwrap.dedent(MILLION), str(tmp_path / POOL_FILE)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(output.split()[0]) < 120, output
