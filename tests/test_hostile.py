"""Damaged files and odd data: a clear error or a correct result, and nothing is lost."""

import ast
import json
import pickle
import re
import shelve
import sqlite3
from pathlib import Path

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivottrace_trl import AnnotationLedger, PoolScorer, Query, TriageConfig, import_answers, pool_ids
from pivottrace_trl.desk.markup import Attempt, attempt_html, load_attempts, to_markdown
from pivottrace_trl.labels.exchange.exporting import WRITERS
from pivottrace_trl.labels.exchange.reading import read_items
from pivottrace_trl.labels.queries import Answer
from pivottrace_trl.labels.status import annotation_status
from pivottrace_trl.labels.waiting import People
from pivottrace_trl.pool import load_pool
from pivottrace_trl.report.record import find_runs
from pivottrace_trl.routing import PoolRouter
from pivottrace_trl.routing.collapse import CollapseMonitor
from pivottrace_trl.training.run_state import Position, RunState

from .routing.examiners import FirstResponses


ROOT = Path(__file__).parent.parent
IDS = [f"{i:016x}" for i in range(20)]
ROWS = [{"prompt_id": identity, "prompt": f"{i}+1=?", "answer": str(i + 1)} for i, identity in enumerate(IDS)]
CLEAR = (ValueError, TypeError, FileNotFoundError)
REPEATED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_ledger(path: Path, num_asked: int = len(IDS)) -> AnnotationLedger:
    ledger = AnnotationLedger(path, 10, IDS, answer_format="text")
    ledger.request([Query(identity, f"prompt {identity}", score=0.5) for identity in IDS[:num_asked]])
    return ledger


# Each reader: a function that writes a sound file into a folder and returns it, and one that reads it.
def make_pool_file(folder: Path) -> Path:
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def make_pool_table(folder: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(folder / "pool.parquet")
    return folder / "pool.parquet"


def make_answers(kind: str, suffix: str):
    def make(folder: Path) -> Path:
        WRITERS[kind](ROWS, folder / f"answers{suffix}")
        return folder / f"answers{suffix}"

    return make


def make_ledger_file(folder: Path) -> Path:
    ledger = make_ledger(folder / "ledger.sqlite")
    ledger.record([Answer(identity, {"solution": "1"}, "ann") for identity in IDS[:5]])
    ledger.close()
    return folder / "ledger.sqlite"


def read_ledger(path: Path) -> None:
    ledger = AnnotationLedger.open(path)
    ledger.close()


def make_router(folder: Path) -> PoolRouter:
    ledger = AnnotationLedger(folder / "fresh.sqlite", 10, IDS)
    router = PoolRouter(IDS, ledger, People(ledger), TriageConfig(probe_size=4))
    router.update_scores(np.arange(len(IDS)), np.arange(20.0), np.arange(20.0))
    return router


def run_state(router: PoolRouter) -> RunState:
    return RunState(router, PoolScorer(None, 0), {"monitor": CollapseMonitor()})


def make_checkpoint(folder: Path) -> Path:
    router = make_router(folder)
    router.first_routing(FirstResponses(lambda row: True))
    run_state(router).save(folder, Position(0, 0, 16, 0, "look"))
    router.ledger.close()
    return folder / "pivottrace.json"


def read_checkpoint(path: Path) -> None:
    router = make_router(path.parent)
    try:
        run_state(router).load(path.parent, seed=0)
    finally:
        router.ledger.close()


def make_run(folder: Path) -> Path:
    record = {"arm": "a", "seed": 0, "max_steps": 1, "steps": 1, "peak_gpu_memory_gb": None, "num_labels": 3}
    record |= {"environment": {}, "settings": {}, "log_history": [{"step": 1, "eval_loss": 0.0, "eval_reward": 0.5}]}
    (folder / "run.json").write_text(json.dumps(record))
    table = pa.table({"route": ["weak"] * 3, "score": [0.1, 0.2, 0.3], "pass_rate": [0.0, 1.0, None]})
    (folder / "_pivottrace").mkdir()
    pq.write_table(table, folder / "_pivottrace" / "routes-epoch-000.parquet")
    return folder / "run.json"


def make_attempts(folder: Path) -> Path:
    columns = {"prompt_id": IDS, "text": ["1+1"] * 20, "pivot_start": [[0, 1]] * 20, "pivot_end": [[1, 2]] * 20}
    pq.write_table(pa.table(columns), folder / "attempts.parquet")
    return folder / "attempts.parquet"


def read_answers(path):
    """The rows of a file; a row that is rejected counts as one that was noticed."""
    items = list(read_items(path, IDS.__contains__))
    if errors := [item.error for item in items if item.error]:
        raise ValueError(f"{path}: {errors[0]}")
    return [item.row for item in items]


READERS = {
    "pool": (make_pool_file, lambda path: pool_ids(load_pool(str(path)))),
    "pool table": (make_pool_table, lambda path: pool_ids(load_pool(str(path)))),
    "answers": (make_answers("jsonl", ".jsonl"), read_answers),
    "spreadsheet": (make_answers("csv", ".csv"), read_answers),
    "answers table": (make_answers("parquet", ".parquet"), read_answers),
    "tasks": (make_answers("label-studio", ".json"), read_answers),
    "ledger": (make_ledger_file, read_ledger),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "checkpoint table": (lambda f: make_checkpoint(f).with_suffix(".parquet"), read_checkpoint),
    "run": (make_run, lambda path: find_runs([path.parent])),
    "run table": (
        lambda f: make_run(f).parent / "_pivottrace" / "routes-epoch-000.parquet",
        lambda path: find_runs([path.parent.parent]),
    ),
    "attempts": (make_attempts, lambda path: [attempt_html(attempt) for attempt in load_attempts(path).values()]),
}


def damage(content: bytes, generator: np.random.Generator) -> bytes:
    """Cut short, flip bits, drop, double or overwrite a stretch, or change the encoding."""
    data = bytearray(content)
    place, length = int(generator.integers(len(data))), int(generator.integers(1, 40))
    kind = generator.integers(7)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for where in generator.integers(len(data), size=length):
            data[where] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length]
    elif kind == 4:
        data[place : place + length] = bytes(length)
    elif kind == 5:
        data[place : place + length] = generator.bytes(length)
    else:
        return content.decode("latin-1").encode("utf-16")
    return bytes(data)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(reader, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.MAX_TABLE_NBYTES_FOR_PICKLING", 0)
    make, read = READERS[reader]
    (tmp_path / "sound").mkdir()
    path = make(tmp_path / "sound")
    read(path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    num_errors = 0
    for _ in range(15 if reader.startswith("pool") else 60):
        damaged = damage(content, generator)
        path.write_bytes(damaged)
        for leftover in path.parent.glob("*.sqlite-*"):
            leftover.unlink()
        try:
            read(path)
        except CLEAR as error:
            num_errors += 1
            # The message names the file, or the row or value of a pool that could be read after all.
            assert any(word in str(error) for word in (path.name, str(path.parent), "of the pool", "column")), error
        if reader != "ledger":  # SQLite may repair its own file
            assert path.read_bytes() == damaged
        assert path.is_file()
    assert num_errors > 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 2**63, "\ud800", "a\x00b", "\u202e5\u202c", "e\u0301", "=1+1", "", "  ", "7"])
    | st.floats()
    | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["prompt_id", "answer", "author", "price", "data", "annotations", "prompt"])
ROW = st.fixed_dictionaries(
    {"prompt_id": st.sampled_from(IDS) | JSON, "answer": st.text(min_size=1, max_size=5) | JSON},
    optional={"author": JSON, "price": JSON, "extra": JSON},
) | st.dictionaries(NAMES, JSON, max_size=4)


@REPEATED
@given(rows=st.lists(ROW | JSON, max_size=6))
def test_no_row_of_an_import_is_lost(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    ledger = make_ledger(folder / "ledger.sqlite")
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, events = path.read_bytes(), len(ledger.events())
    try:
        report = import_answers(ledger, path, "ann", progress=False)
    except ValueError as error:
        assert path.name in str(error)
        assert len(ledger.events()) == events
    else:
        assert report.recorded == len(ledger.bought_ids)
        taken = report.recorded + report.duplicates + report.unanswered
        assert taken + report.rejected >= len(rows)  # a task may hold several annotations
        lines = [] if report.rejected_path is None else report.rejected_path.read_bytes().splitlines()
        assert len(lines) == report.rejected and all(json.loads(line)["reason"] for line in lines)
        given = {row["prompt_id"]: row for row in rows if isinstance(row, dict) and type(row.get("prompt_id")) is str}
        for identity in ledger.bought_ids:
            assert identity in given and isinstance(ledger.label(identity)["solution"], str)
        annotation_status(ledger)
    assert path.read_bytes() == before
    ledger.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt_id": "' + IDS[0].encode() + b'", "answer": ' + b"[" * 100_000 + b"}\n", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (json.dumps({"prompt_id": IDS[0], "answer": {"a": 5}}).encode(), "must be a text or a number"),
        (json.dumps({"prompt_id": IDS[0], "answer": True}).encode(), "must be a text or a number"),
        (json.dumps({"prompt_id": IDS[0], "answer": "5", "price": 10**400}).encode(), "`price` is 1000"),
        (json.dumps({"prompt_id": IDS[0], "answer": "\ud800"}).encode(), "half a character"),
        (json.dumps({"prompt_id": IDS[0], "answer": "5", "author": "\udfff"}).encode(), "half characters"),
        (json.dumps({"prompt_id": "\ud800", "answer": "5"}).encode(), "unknown prompt"),
    ],
)
def test_rows_that_are_refused_say_why(content, message, tmp_path):
    ledger = make_ledger(tmp_path / "ledger.sqlite")
    path = tmp_path / "answers.jsonl"
    sound = json.dumps({"prompt_id": IDS[1], "answer": "7"}).encode()
    path.write_bytes(content.rstrip() + b"\r\n" + sound)  # mixed line ends
    report = import_answers(ledger, path, "ann", progress=False)
    assert (report.recorded, report.rejected) == (1, 1)
    assert message in report.rejected_path.read_text()
    ledger.close()


def test_odd_spreadsheets(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("\ufeffprompt_id;answer\r" + f"{IDS[0]};5\r{IDS[1]};\u0665\u202e\r", encoding="utf-8", newline="")
    assert [row["answer"] for row in read_answers(path)] == ["5", "\u0665\u202e"]
    path.write_text("prompt_id,answer,answer\n1,2,3\n")
    with pytest.raises(ValueError, match="'answer' twice"):
        read_answers(path)
    path.write_text("prompt_id,answer\n1," + "x" * 99_999)
    assert len(read_answers(path)[0]["answer"]) == 99_999
    path.write_bytes("prompt_id;réponse\n1,2".encode("latin-1"))
    with pytest.raises(ValueError, match="no header in UTF-8"):
        read_answers(path)


@pytest.mark.parametrize(
    "prompts",
    [
        [1, 2],
        [1.5],
        [True],
        [None],
        [["a", "b"]],
        [[{"role": "user"}]],
        [{"role": "user", "content": "?"}],
        [[{"role": "user", "content": 5}]],
        [[{"role": "user", "content": ["?"]}]],
        ["  \n"],
        [[]],
        [b"bytes"],
    ],
)
def test_prompts_that_are_none(prompts):
    with pytest.raises(ValueError, match="Row 0 of the pool has"):
        pool_ids(Dataset.from_dict({"prompt": prompts}))


@REPEATED
@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_is_a_prompt(text):
    # Characters without width alone are none, since ids pass over them.
    if re.sub("[\u200b\u2060\ufeff]", "", text).strip():
        assert len(pool_ids(Dataset.from_dict({"prompt": [text]}))) == 1


@REPEATED
@given(text=st.text() | st.text("$\\()[]<>&`*_\n ", max_size=200))
def test_the_desk_shows_any_text(text):
    shown = to_markdown(text)
    assert "<" not in shown.replace(" < ", "")
    page = attempt_html(Attempt(text, ((0, 2), (1, 4), (3, 1), (-5, 10**9))))
    assert "<script" not in page


@pytest.mark.parametrize("text", ["$" * 100_000, "$a" * 50_000, r"\[" * 50_000, "$ " * 50_000, "\\" * 100_000])
def test_the_desk_shows_long_prompts_at_once(text):
    assert to_markdown(text)


@pytest.mark.parametrize(
    "options",
    [
        {"tau_high": float("nan")},
        {"tau_low": float("inf")},
        {"discard_ratio": float("nan")},
        {"discard_ratio": -1},
        {"min_agreement": float("nan")},
        {"min_agreement": 5},
        {"min_agreement": -0.1},
    ],
)
def test_settings_that_are_none(options):
    with pytest.raises(ValueError, match="|".join(f"`{name}` is" for name in options)):
        TriageConfig(**options)


@pytest.mark.parametrize("probe_size", [1.5, True, 0, -3, 10**30, float("nan")])
def test_probe_sizes_that_are_none(probe_size):
    with pytest.raises(ValueError, match="`probe_size` is"):
        TriageConfig(probe_size=probe_size).resolve_probe_size(10, 20)


FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def ways_to_a_pickle(path: Path) -> list[str]:
    """The imports and calls of a module that could load one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += FORBIDDEN & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found += FORBIDDEN & {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += {"eval", "exec", "torch.load", "np.load", "numpy.load", "pd.read_pickle"} & {name}
            found += {"allow_pickle", "trust_remote_code"} & {keyword.arg for keyword in node.keywords}
    return found


def test_no_module_can_load_a_pickle():
    places = {path.name: ways_to_a_pickle(path) for path in (ROOT / "pivottrace_trl").rglob("*.py")}
    assert not {name: found for name, found in places.items() if found}
    assert ways_to_a_pickle(Path(__file__)) == ["pickle", "shelve", "joblib"], "this test imports three of them"


def test_no_reader_loads_a_pickle(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle is loaded")

    made = []
    for number, (make, read) in enumerate(READERS.values()):
        (tmp_path / str(number)).mkdir()
        made.append((make(tmp_path / str(number)), read))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for module, names in ((pickle, ("load", "loads", "Unpickler", "_Unpickler")), (torch, ("load",)), (np, ("load",)),
                          (joblib, ("load",)), (shelve, ("open",))):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    for path, read in made:
        if not path.name.startswith("pool"):  # `datasets` pickles its own configuration to name its cache
            read(path)


def test_a_pickle_in_a_file_stays_text(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    content = pickle.dumps(Bomb())
    for name, (make, read) in READERS.items():
        folder = tmp_path / name
        folder.mkdir()
        path = make(folder)
        path.write_bytes(content)
        with pytest.raises(CLEAR):
            read(path)
            raise ValueError("a table without a row")  # what is skipped line by line is no error
    assert not (tmp_path / "exploded").exists()


def test_a_ledger_that_is_damaged_later_says_so(tmp_path):
    path = make_ledger_file(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_are_final")
        connection.execute("UPDATE events SET value = '{' WHERE kind = 'answer'")
    connection.close()
    with pytest.raises(ValueError, match="ledger.sqlite is damaged .*Restore a backup"):
        AnnotationLedger.open(path)
