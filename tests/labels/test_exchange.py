"""The queue out, answers in: every format, partial and hostile files."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pivottrace_trl import AnnotationLedger, Query, annotation_status, export_queue, import_answers
from pivottrace_trl.cli import main
from pivottrace_trl.desk.session import DeskSession
from pivottrace_trl.labels.exchange.exporting import SUFFIXES, WRITERS, guard_cell, unguard_cell
from pivottrace_trl.labels.exchange.reading import read_items


IDS = [f"p{number}" for number in range(13)]
PROMPTS = [
    *(f"What is {number}+1?" for number in range(10)),
    '=HYPERLINK("http://x","y")',
    'a,\n"b"; ünï \'',
    "\u2028x\x0by",
]


@pytest.fixture
def ledger(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 6, IDS)
    queries = [
        Query(i, prompt, "probe" if n < 2 else "annotate", "weak", float(n), "-5")
        for n, (i, prompt) in enumerate(zip(IDS, PROMPTS, strict=True))
    ]
    ledger.request(queries)
    return ledger


def take(ledger, path, author="ann", **options):
    return import_answers(ledger, path, author, progress=False, **options)


def read_rows(path):
    """All columns of a file."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [item.row for item in read_items(path, IDS.__contains__)]


def fill(path, file_format, answers):
    """Answer an exported file as a person would; `answers` by prompt id."""
    if file_format == "label-studio":
        tasks = json.loads(path.read_text())
        for task in tasks:
            if (answer := answers.get(task["data"]["prompt_id"])) is not None:
                result = {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": [answer]}}
                task["annotations"] = [{"completed_by": {"email": "ann@x.org"}, "result": [result]}]
        path.write_text(json.dumps(tasks))
        return
    rows = read_rows(path)
    for row in rows:
        row["answer"] = answers.get(row["prompt_id"], "")
    WRITERS[file_format](rows, path)


@pytest.mark.parametrize("with_suggestions", [False, True])
@pytest.mark.parametrize("file_format", list(WRITERS))
def test_round_trip(file_format, with_suggestions, ledger, tmp_path):
    path = tmp_path / f"queue{SUFFIXES[file_format]}"
    assert export_queue(ledger, path, file_format, with_suggestions) == 13
    rows = [row.get("data", row) for row in read_rows(path)]
    assert [row["prompt_id"] for row in rows] == ["p1", "p0", *(f"p{n}" for n in range(12, 1, -1))]
    assert {row["prompt_id"]: row["prompt"] for row in rows} == dict(zip(IDS, PROMPTS, strict=True))
    assert ("-5" in path.read_text(errors="replace")) is with_suggestions or file_format == "parquet"
    fill(path, file_format, {"p1": "2", "p0": "-1", "p3": "(1,2)"})
    report = take(ledger, path)
    assert (report.recorded, report.duplicates, report.unanswered, report.rejected) == (3, 0, 10, 0)
    assert [ledger.label(i) for i in IDS[:4]] == [{"solution": "-1"}, {"solution": "2"}, None, {"solution": "$(1,2)$"}]
    assert ledger.author("p1") == ("ann@x.org" if file_format == "label-studio" else "ann")
    # The same file again changes nothing.
    events = ledger.events()
    report = take(ledger, path)
    assert (report.recorded, report.duplicates, report.unanswered, report.rejected) == (0, 3, 10, 0)
    assert ledger.events() == events
    # The next export holds what is still open.
    assert export_queue(ledger, path, file_format, limit=5) == 5
    assert [row.get("data", row)["prompt_id"] for row in read_rows(path)] == ["p12", "p11", "p10", "p9", "p8"]


def test_every_row_stands_on_its_own(ledger, tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [
        {"prompt_id": "p0", "answer": "1", "author": "bob", "price": 0.5},
        {"prompt_id": "p0", "answer": "1.0"},
        {"prompt_id": "p0", "answer": "2"},
        {"prompt_id": "nobody", "answer": "2"},
        {"prompt_id": "p1", "answer": "   "},
        {"prompt_id": "p1", "answer": None},
        {"prompt_id": "p1", "answer": r"\frac{1}{"},
        {"prompt_id": "p2", "answer": 7},
        {"prompt_id": "p3", "answer": "3", "price": "a lot"},
        {"prompt_id": "p3", "answer": "3", "price": -1},
        {"prompt_id": ["p3"], "answer": "3"},
        {"answer": "3"},
        *({"prompt_id": f"p{n}", "answer": str(n)} for n in range(4, 12)),
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(5, '{"prompt_id": "p9", "ans')
    path.write_text("\n".join(lines))
    report = take(ledger, path)
    assert (report.recorded, report.duplicates, report.unanswered) == (6, 1, 1)
    assert ledger.num_left == 0 and ledger.bought_ids == {"p0", "p2", "p4", "p5", "p6", "p7"}
    assert (ledger.author("p0"), ledger.author("p2"), ledger.label("p2")) == ("bob", "ann", {"solution": "7"})
    rejected = read_rows(report.rejected_path)
    assert report.rejected == len(rejected) == len(rows) + 1 - 8
    reasons = {row["row"]: row["reason"] for row in rejected}
    for number, reason in {
        3: "conflict: bob answered '1' before",
        4: "unknown prompt",
        5: "the answer is empty",
        6: "line 6 is no JSON object",
        8: "reads nothing in",
        10: "`price` is 'a lot'",
        11: "`price` is -1",
        12: "`prompt_id` is ['p3']",
        13: "`prompt_id` is None",
        18: "over budget: all 6 labels are bought",
    }.items():
        assert reason in reasons[number], (number, reasons[number])
    # What was rejected is given back whole, to be mended and imported again.
    assert {name: rejected[0][name] for name in ("prompt_id", "answer")} == {"prompt_id": "p0", "answer": "2"}
    assert sum(event["price"] for event in ledger.events() if event["kind"] == "answer") == 0.5
    path.write_text(json.dumps({"prompt_id": "p0", "answer": "2"}))
    assert take(ledger, path, replace=True).recorded == 1
    assert ledger.label("p0") == {"solution": "2"} and ledger.num_bought == 6 and ledger.author("p0") == "ann"
    assert not report.rejected_path.exists()


def test_label_studio_exports(ledger, tmp_path):
    """The full JSON export with cancelled and several annotations, and JSON-MIN."""

    def task(identity, *texts, **options):
        results = [[{"from_name": "answer", "value": {"text": text}}] for text in texts]
        return {
            "id": 1,
            "data": {"prompt_id": identity, "prompt": "?"},
            "annotations": [{"completed_by": 4, "result": result, **options} for result in results],
            "predictions": [{"result": [{"from_name": "answer", "value": {"text": ["99"]}}]}],
        }

    path = tmp_path / "export.json"
    tasks = [
        task("p0", ["1"]),
        task("p1", ["5"], was_cancelled=True),
        task("p2", ["3"], ["4"]),
        task("p3"),
        task("p4", "6"),
    ]
    tasks += [{"data": None}, {"data": {"prompt_id": "p5"}, "annotations": {"x": 1}}, "text"]
    path.write_text(json.dumps(tasks))
    report = take(ledger, path)
    assert ledger.bought_ids == {"p0", "p2", "p4"} and ledger.label("p2") == {"solution": "3"}
    assert ledger.author("p0") == "4"
    assert (report.recorded, report.unanswered, report.rejected) == (3, 2, 4)
    path.write_text(json.dumps([{"id": 3, "prompt_id": "p1", "answer": "2", "annotator": 1, "lead_time": 3.5}]))
    assert take(ledger, path).recorded == 1


def test_spreadsheets_get_no_formulas(ledger, tmp_path):
    path = tmp_path / "queue.csv"
    export_queue(ledger, path, "csv", with_suggestions=True)
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    # What a spreadsheet of another country saves: semicolons, no apostrophes, other line ends.
    path.write_bytes("\ufeffprompt_id;answer\r\np0;-3\r\np1;'-4\r\np2;\r\n".encode())
    assert take(ledger, path).recorded == 2
    assert ledger.label("p0") == {"solution": "-3"} and ledger.label("p1") == {"solution": "-4"}


@given(st.text(max_size=20))
def test_guarding_a_cell_loses_nothing(text):
    assert unguard_cell(guard_cell(text)) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("answers.xlsx", b"x", "ends in '.xlsx'.*'.csv'"),
        ("answers.csv", b"\xff\xfe\x00", "cannot be read as a .csv file"),
        ("answers.parquet", b"PAR1 no", "cannot be read as a .parquet file"),
        ("answers.json", b'{"a": 1}', "it is no list of rows or tasks"),
        ("answers.json", b"[" * 100_000, "cannot be read as a .json file"),
        ("answers.csv", b"question,reply\n1,2\n", "no columns `prompt_id` and `answer`, only .*'question', 'reply'"),
    ],
)
def test_files_that_cannot_be_read(name, content, message, ledger, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    before = ledger.events()
    with pytest.raises(ValueError, match=message):
        take(ledger, path)
    assert ledger.events() == before and path.read_bytes() == content


def test_parquet_with_types_of_its_own(ledger, tmp_path):
    path = tmp_path / "answers.parquet"
    table = pa.table({"prompt_id": ["p0", "p1"], "answer": [1.5, None], "when": [b"\xff", b"x"]})
    pq.write_table(table, path)
    assert take(ledger, path).recorded == 1 and ledger.label("p0") == {"solution": "1.5"}


def test_free_text_answers(tmp_path):
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 5, IDS, "target", answer_format="text")
    ledger.request([Query("p0"), Query("p1")])
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt_id": "p0", "answer": " any prose, really "}\n{"prompt_id": "p1", "answer": "("}')
    assert take(ledger, path).recorded == 2
    assert ledger.label("p0") == {"target": "any prose, really"}


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=2),
)
COLUMNS = st.sampled_from(["prompt_id", "answer", "author", "price", "data", "x"])


@settings(max_examples=30)
@given(rows=st.lists(st.dictionaries(COLUMNS, ODD, max_size=5), max_size=5))
def test_whatever_a_file_holds(rows, tmp_path_factory):
    """Each row is recorded, known, unanswered or rejected; none disappears, nothing is raised but `ValueError`."""
    folder = tmp_path_factory.mktemp("odd")
    ledger = AnnotationLedger(folder / "ledger.sqlite", 5, IDS, answer_format="text")
    ledger.request([Query(i) for i in IDS])
    path = folder / "answers.json"
    path.write_text(json.dumps(rows))
    try:
        report = take(ledger, path)
    except ValueError as error:
        assert "no columns" in str(error)
        return
    assert report.recorded + report.duplicates + report.unanswered + report.rejected == len(rows)
    assert ledger.num_bought == report.recorded
    ledger.close()


def test_the_command_line(ledger, tmp_path, capsys):
    run = str(tmp_path)
    assert main(["annotate", "export", run, "--format", "csv", "--limit", "4"]) == 0
    assert "4 queries in" in capsys.readouterr().out
    path = tmp_path / "queue.csv"
    fill(path, "csv", {"p0": "1", "p1": "oops("})
    assert main(["annotate", "import", run, str(path), "--author", "eve", "--price", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "1 answers recorded, 0 known before, 2 not answered yet, 1 rejected. 1 of 6 labels" in said
    assert "1 unreadable answer" in said and "queue.csv.rejected-" in said
    assert main(["annotate", "status", run]) == 0
    said = capsys.readouterr().out
    assert "1 of 6" in said and "eve: 1 labels, 0.20" in said
    assert main(["annotate", "status", str(tmp_path / "elsewhere")]) == 2
    assert "There is no ledger in" in capsys.readouterr().err


def test_status(ledger):
    assert annotation_status(ledger).per_hour == 0.0
    ledger.mark_broken("p5", "ann")
    ledger.mark_broken("p6", "ann")
    ledger.undo("ann")
    status = annotation_status(ledger)
    assert (status.broken, status.queue, status.last_answer) == (1, {"probe": 2, "annotate": 10}, None)


def test_a_format_of_ones_own_is_loaded_by_its_name(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt_id": "p0", "answer": " 5 pm "}')
    for name in ("tests.conftest:FIRST_DIGIT", "my_format"):
        ledger = AnnotationLedger(tmp_path / name / "ledger.sqlite", 5, IDS, answer_format=name)
        ledger.request([Query("p0")])
        if name == "my_format":
            with pytest.raises(ValueError, match="no answer format 'my_format'.*package.module:attribute"):
                take(ledger, path, answer_format=name)
        else:
            with pytest.raises(
                ValueError, match="The answer format is 'text', but the ledger was made with 'tests.con"
            ):
                take(ledger, path, answer_format="text")
            assert take(ledger, path, answer_format=name).recorded == 1
            assert ledger.label("p0") == {"solution": "5 pm"}


def test_no_code_is_imported_because_a_ledger_names_it(tmp_path, monkeypatch):
    """A ledger may be a stranger's."""
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    name = "of_a_stranger:FORMAT"
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt_id": "p0", "answer": "5"}')
    ledger = AnnotationLedger(tmp_path / "ledger.sqlite", 5, IDS, answer_format=name)
    ledger.request([Query("p0")])
    for use in (lambda: take(ledger, path), lambda: DeskSession(ledger)):
        with pytest.raises(ValueError, match=f"names the answer format '{name}'.*`answer_format={name}`"):
            use()
    annotation_status(ledger)
    export_queue(ledger, tmp_path / "queue.csv", "csv")
    with pytest.raises(SystemExit, match="imported"):
        take(ledger, path, answer_format=name)
