"""No row of an imported file is lost, whatever the file holds; nothing of another's is overwritten."""

import csv
import io
import json
import re
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pivottrace_trl import AnnotationLedger, Query, import_answers, prompt_id
from pivottrace_trl.labels.exchange.exporting import guard_cell, unguard_cell


IDS = [prompt_id(f"Question {number}") for number in range(12)]


@pytest.fixture
def ledger(tmp_path):
    return make_ledger(tmp_path)


def make_ledger(folder):
    ledger = AnnotationLedger(folder / "ledger.sqlite", len(IDS), IDS, answer_format="text")
    ledger.request([Query(identity) for identity in IDS])
    return ledger


def take(ledger, path, content=None, **options):
    """Import a file; the answers by prompt id, and the rejected rows."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = import_answers(ledger, path, "ann", progress=False, **options)
    lines = [] if report.rejected_path is None else report.rejected_path.read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert len(rejected) == report.rejected == sum(report.reasons.values())
    assert all(row["reason"] for row in rejected)
    return {i: ledger.label(i)["solution"] for i in IDS if ledger.label(i)}, rejected, report


def test_a_column_called_data_is_a_column(ledger, tmp_path):
    content = "prompt_id,data,answer\n" + "".join(f"{identity},x,{n}\n" for n, identity in enumerate(IDS[:3]))
    labels, rejected, _ = take(ledger, tmp_path / "answers.csv", content)
    assert labels == {identity: str(n) for n, identity in enumerate(IDS[:3])} and not rejected
    row = {"prompt_id": IDS[3], "answer": "3", "data": {"prompt_id": IDS[4]}, "annotations": []}
    labels, rejected, _ = take(ledger, tmp_path / "answers.jsonl", json.dumps(row))
    assert labels[IDS[3]] == "3" and IDS[4] not in labels and not rejected


def control(name, kind, value, **more):
    key = {"textarea": "text"}.get(kind, kind)
    return {"from_name": name, "to_name": "prompt", "type": kind, "value": {key: value, **more}}


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        ([control("answer", "textarea", ["5"])], "5"),
        ([control("solution", "textarea", ["5"])], "5"),
        ([control("solution", "number", 5)], "5"),
        ([control("solution", "number", 0)], "0"),
        ([control("solution", "choices", ["B"])], "B"),
        ([control("answer", "choices", ["B"]), control("comment", "textarea", ["easy"])], "B"),
        ([control("solution", "number", 5), control("comment", "textarea", [])], "5"),
        ([control("solution", "textarea", ["5"]), control("solution", "textarea", ["5"])], "5"),
        ([control("solution", "textarea", ["5"]), control("ner", "labels", ["X"], text="5", start=0, end=1)], "5"),
        ([], None),
        ([control("answer", "textarea", [])], None),
        ([control("solution", "number", 5), control("comment", "textarea", ["easy"])], r"several controls.*comment"),
        ([control("solution", "textarea", ["5", "6"])], r"holds 2 answers"),
        ([control("solution", "choices", ["A", "B"])], r"holds 2 answers"),
        ([control("ner", "labels", ["X"], text="5", start=0, end=1)], r"no text area, number or choices.*labels"),
        ({"value": 5}, r"`result` is no list"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_each_control_of_label_studio(result, answer, suffix, ledger, tmp_path):
    task = {"id": 7, "data": {"prompt_id": IDS[0], "prompt": "?"}, "annotations": [{"id": 1, "result": result}]}
    content = json.dumps([task] if suffix == ".json" else task)
    labels, rejected, report = take(ledger, tmp_path / f"export{suffix}", content)
    if labels or answer is None:
        assert labels == ({} if answer is None else {IDS[0]: answer})
        assert report.unanswered == (answer is None) and not rejected
    else:
        assert re.search(answer, rejected[0]["reason"]) and rejected[0]["prompt_id"] == IDS[0]


# As label_studio_sdk.converter writes them: a single text or choice bare, everything else in objects, JSON in CSV.
FLAT = {
    "answer": ("5", "5"),
    "solution": ("5", "5"),
    "amount": ([{"number": 5}], "5"),
    "verdict": ("B", "B"),
    "several": ({"choices": ["A", "B"]}, "holds 2 answers"),
    "lines": ({"text": ["5", "6"]}, "holds 2 answers"),
    "empty": ("", None),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_flat_exports_of_label_studio(name, suffix, ledger, tmp_path):
    value, answer = FLAT[name]
    own = {"annotator": "ann@x.org", "annotation_id": 3, "created_at": "t", "updated_at": "t", "lead_time": 3.5}
    row = {"id": 7, "prompt_id": IDS[0], "prompt": "?", "purpose": "probe", "score": 0.5, name: value, **own}
    path = tmp_path / f"export{suffix}"
    if suffix == ".csv":
        cells = {key: cell if isinstance(cell, str) else json.dumps(cell) for key, cell in row.items()}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted(cells), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerow(cells)
    else:
        path.write_text(json.dumps([row]))
    labels, rejected, report = take(ledger, path)
    if labels or answer is None:
        assert labels == ({} if answer is None else {IDS[0]: answer}) and report.unanswered == (answer is None)
        assert answer is None or ledger.author(IDS[0]) == "ann@x.org"
    else:
        assert answer in rejected[0]["reason"]


def test_several_annotations_of_a_task(ledger, tmp_path):
    def task(identity, *annotations):
        return {"data": {"prompt_id": identity}, "annotations": list(annotations)}

    def by(author, text, **more):
        return {"completed_by": {"email": author}, "result": [control("solution", "textarea", [text])], **more}

    tasks = [
        task(IDS[0], by("a", "1"), by("b", "2"), by("c", "1")),
        task(IDS[1], by("a", "1"), by("b", "2", ground_truth=True)),
        task(IDS[2], by("a", "1", was_cancelled=True), by("b", "2")),
    ]
    labels, rejected, report = take(ledger, tmp_path / "export.json", json.dumps(tasks))
    assert labels == {IDS[0]: "1", IDS[1]: "2", IDS[2]: "2"} and ledger.author(IDS[2]) == "b"
    assert (report.recorded, report.duplicates, report.unanswered, report.rejected) == (3, 1, 1, 2)
    assert [row["reason"].split(":")[0] for row in rejected] == ["conflict", rejected[1]["reason"]]
    assert "ground truth" in rejected[1]["reason"] and [row["row"] for row in rejected] == [1, 2]


BROKEN = {
    # A quote that is never closed; one that a later quote seems to close; two of them; the last row.
    "end of file": ([f'{IDS[0]},"1', f"{IDS[1]},2", f"{IDS[2]},3"], {1: "2", 2: "3"}),
    "later quote": ([f'{IDS[0]},"1', f"{IDS[1]},2", f'{IDS[2]},"3"'], {1: "2", 2: "3"}),
    "two quotes": ([f'{IDS[0]},"1', f"{IDS[1]},2", f'{IDS[2]},3"', f"{IDS[3]},4"], {1: "2", 3: "4"}),
    "merged well": ([f'{IDS[0]},"1', f'{IDS[1]},2"', f"{IDS[2]},3"], {2: "3"}),
    # The answer of the first row and the id of the second.
    "mixed": ([f'1,""""",{IDS[0]}', f'2,""x",{IDS[1]}', f"3,,{IDS[2]}"], {2: "3"}),
    "last row": ([f"{IDS[0]},1", f'{IDS[1]},"2'], {0: "1"}),
    "garbage": ([f'{IDS[0]},"1"x', f"{IDS[1]},2"], {1: "2"}),
    "too few cells": ([IDS[0], f"{IDS[1]},2"], {1: "2"}),
    "too many cells": ([f"{IDS[0]},1,5", f"{IDS[1]},2,", ""], {1: "2"}),
    "not UTF-8": ([f"{IDS[0]},\udce9", f"{IDS[1]},2"], {1: "2"}),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_broken_row_costs_no_other(kind, end, ledger, tmp_path):
    lines, expected = BROKEN[kind]
    header = "answer,note,prompt_id" if kind == "mixed" else "prompt_id,answer"
    content = end.join([header, *lines, ""]).encode("utf-8", "surrogateescape")
    labels, rejected, _ = take(ledger, tmp_path / "answers.csv", content)
    assert labels == {IDS[n]: answer for n, answer in expected.items()}
    given_back = json.dumps(rejected)
    assert all(IDS[n] in given_back for n in range(len(lines)) if lines[n] and n not in expected)


def test_a_row_of_too_many_cells_is_given_back_whole(ledger, tmp_path):
    content = f"note,answer,prompt_id\nx,1,5,{IDS[0]}\nx,2,{IDS[1]}\n"
    labels, rejected, _ = take(ledger, tmp_path / "answers.csv", content)
    assert labels == {IDS[1]: "2"} and rejected[0]["line"] == f"x,1,5,{IDS[0]}"
    assert rejected[0]["reason"] == "line 2 has 4 cells, but the header has 3"


def test_a_cell_may_hold_several_lines(ledger, tmp_path):
    content = f'prompt_id,prompt,answer\n{IDS[0]},"first\nsecond, third\n","1"\n{IDS[1]},"a ""quoted"" word",2\n'
    labels, rejected, _ = take(ledger, tmp_path / "answers.csv", content)
    assert labels == {IDS[0]: "1", IDS[1]: "2"} and not rejected


CELL = st.text(st.sampled_from("5x\"\n\r,; '=é\u00a0"), max_size=6)


@settings(max_examples=80)
@given(
    cells=st.lists(CELL, min_size=2, max_size=8),
    damage=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(['"', "\n", ",", ""])), max_size=2),
    columns=st.permutations(["prompt_id", "note", "answer"]),
)
def test_a_damaged_table_loses_and_invents_nothing(cells, damage, columns, tmp_path_factory):
    """Each id comes back: with its own answer, as unanswered, or in the rejected file."""
    folder = tmp_path_factory.mktemp("damage")
    ledger = make_ledger(folder)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    rows = [{"prompt_id": IDS[n], "note": guard_cell(cell), "answer": f"answer {n}"} for n, cell in enumerate(cells)]
    writer.writerows([columns, *([row[name] for name in columns] for row in rows)])
    text, start = file.getvalue(), len("prompt_id,note,answer\r\n")
    for place, what in damage:
        place = start + place % (len(text) - start)
        text = text[:place] + what + text[place + (what == "") :]
    labels, rejected, report = take(ledger, folder / "answers.csv", text)
    if not damage:
        assert labels == {IDS[n]: f"answer {n}" for n in range(len(cells))}
    given_back = json.dumps(rejected)
    for n in range(len(cells)):
        if IDS[n] in text:
            assert IDS[n] in labels or IDS[n] in given_back or report.unanswered, text
        # What was damaged itself may be misread; another row's answer may not.
        assert not any(f"answer {m}" in labels.get(IDS[n], "") for m in range(len(cells)) if m != n), text
    ledger.close()


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"prompt_id": st.sampled_from([*IDS, "nobody", "", None]), "answer": st.none() | CELL},
            optional={"author": st.none() | CELL, "price": st.none() | st.floats().map(str) | CELL, "data": CELL},
        ),
        min_size=1,
        max_size=8,
    ),
    suffix=st.sampled_from([".csv", ".jsonl", ".json", ".parquet"]),
)
def test_the_counts_add_up(rows, suffix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    ledger = make_ledger(folder)
    path = folder / f"answers{suffix}"
    names = sorted(set().union(*rows))
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: guard_cell(value) for name, value in row.items()} for row in rows)
    elif suffix == ".parquet":
        pq.write_table(
            pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}), path
        )
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
    _, rejected, report = take(ledger, path)
    assert report.recorded + report.duplicates + report.unanswered + report.rejected == len(rows)
    assert [row["row"] for row in rejected] == sorted({row["row"] for row in rejected})
    ledger.close()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_one_huge_cell_costs_one_row(suffix, ledger, tmp_path):
    answers = [(IDS[0], "0"), (IDS[1], "x" * 20_000_000), *((IDS[n], str(n)) for n in range(2, 12))]
    if suffix == ".csv":
        content = "prompt_id,answer\n" + "".join(f'{identity},"{answer}"\n' for identity, answer in answers)
    else:
        content = "".join(json.dumps({"prompt_id": i, "answer": answer}) + "\n" for i, answer in answers)
    labels, rejected, report = take(ledger, tmp_path / f"answers{suffix}", content)
    assert labels == {IDS[n]: str(n) for n in range(12) if n != 1}
    assert len(rejected) == 1 and re.search("more than 1.?0,000", rejected[0]["reason"])
    assert report.rejected_path.stat().st_size < 1_000_000
    assert csv.field_size_limit() == 131_072  # others may read CSV in this process


def test_no_quote_makes_one_row_of_a_large_file(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("pivottrace_trl.labels.exchange.reading._MAX_RECORD_LENGTH", 5_000)
    lines = [f'{IDS[0]},"1', *(f"unknown{n},2" for n in range(2_000)), f"{IDS[1]},2", f"{IDS[2]},{'x' * 6_000}"]
    labels, rejected, _ = take(ledger, tmp_path / "answers.csv", "\n".join(["prompt_id,answer", *lines]))
    assert labels == {IDS[1]: "2"} and len(rejected) == 2_002


def test_files_of_others_are_left_alone(ledger, tmp_path):
    """Neither a file that has the name of ours, nor one of ours that somebody has begun to mend, is overwritten."""
    others = tmp_path / "answers.rejected.jsonl"
    others.write_text("mine\n")
    path = tmp_path / "answers.csv"
    rejecting, sound = f"prompt_id,answer\nnobody,1\n{IDS[0]},5\n", f"prompt_id,answer\n{IDS[0]},5\n"
    _, _, first = take(ledger, path, rejecting)
    _, _, again = take(ledger, path, rejecting)
    assert first.rejected_path == again.rejected_path
    mended = first.rejected_path.read_text().replace("nobody", IDS[1])
    first.rejected_path.write_text(mended)
    _, _, third = take(ledger, path, rejecting)
    assert third.rejected_path != first.rejected_path and first.rejected_path.read_text() == mended
    take(ledger, path, sound)
    assert not third.rejected_path.exists()  # it was ours, and said nothing any more
    assert first.rejected_path.read_text() == mended and others.read_text() == "mine\n"
    # What was mended is taken in like any other file.
    labels, _, _ = take(ledger, first.rejected_path)
    assert labels == {IDS[0]: "5", IDS[1]: "1"}


def test_a_rejected_file_that_is_rejected_again_gives_the_new_reason(ledger, tmp_path):
    _, _, report = take(ledger, tmp_path / "answers.csv", f"prompt_id,answer\n{IDS[0]},5\nnobody,1\n")
    report.rejected_path.write_text(report.rejected_path.read_text().replace("nobody", IDS[0]))
    _, rejected, _ = take(ledger, report.rejected_path)
    assert rejected[0]["reason"].startswith("conflict") and rejected[0]["row"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_a_small_parquet_file_cannot_ask_for_much_memory(tmp_path):
    """A megabyte that a dictionary repeats 3,000 times: 3 GB, in a file of a few kilobytes."""
    path = tmp_path / "answers.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000), pa.array(["x" * 1_000_000]))
    ids = pa.array([*IDS, *["nobody"] * (3_000 - len(IDS))])
    pq.write_table(pa.table({"prompt_id": ids, "answer": text, "prompt": text}), path)
    assert path.stat().st_size < 100_000
    make_ledger(tmp_path).close()
    code = """
        import re, sys
        from pathlib import Path
        from pivottrace_trl import AnnotationLedger, import_answers
        ledger = AnnotationLedger.open(sys.argv[1])
        report = import_answers(ledger, Path(sys.argv[2]), "ann", progress=False)
        peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())
        print(report.rejected, int(peak[1]) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "ledger.sqlite"), str(path)]
    num_rejected, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert num_rejected == "3000" and int(megabytes) < 500


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("_MAX_PARQUET_BYTES", 10_000, "a column takes .* bytes uncompressed, more than 10,000"),
        ("_MAX_PARQUET_ROWS", 99, "it says that it has 5,000 rows, more than 99"),
    ],
)
def test_what_a_parquet_file_declares_is_checked_first(limit, value, message, ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(f"pivottrace_trl.labels.exchange.reading.{limit}", value)
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"prompt_id": [IDS[0]] * 5_000, "answer": [str(n) for n in range(5_000)]}), path)
    before = ledger.events()
    with pytest.raises(ValueError, match=message):
        take(ledger, path)
    assert ledger.events() == before


def test_nested_columns_are_refused_by_name(ledger, tmp_path):
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"prompt_id": [IDS[0]], "answer": [["5"]]}), path)
    with pytest.raises(ValueError, match="column `answer` holds list.* must hold texts or numbers"):
        take(ledger, path)


def test_large_json_is_asked_for_in_lines(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("pivottrace_trl.labels.exchange.reading._MAX_JSON_BYTES", 100)
    with pytest.raises(ValueError, match=r"more than 100: make JSON Lines of it, `jq -c"):
        take(ledger, tmp_path / "answers.json", json.dumps([{"prompt_id": i, "answer": "5"} for i in IDS]))
    assert ledger.num_bought == 0


def test_whole_numbers_that_pandas_made_floats(ledger, tmp_path):
    path = tmp_path / "answers.parquet"
    columns = {"prompt_id": IDS[:3], "answer": [7.0, None, 1.5], "price": [float("nan"), 1.0, 2.0]}
    pq.write_table(pa.table(columns), path)
    labels, rejected, _ = take(ledger, path, price=0.5)
    assert labels == {IDS[0]: "7", IDS[2]: "1.5"} and not rejected
    assert sum(event["price"] for event in ledger.events()) == 2.5


UNSEEN = [
    "",
    " ",
    "  ",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\t",
    "\r",
    "\n",
    "\x00",
    "\u2028",
    "\u202e",
    " \u00ad",
]


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", "＋1", "－1", "＠x"])
def test_a_formula_behind_what_cannot_be_seen_is_guarded(unseen, formula):
    assert guard_cell(unseen + formula) == "'" + unseen + formula


SPACED = st.text(st.sampled_from("'=+-@＝5a \t\r\n\u00a0\u3000\u200b\ufeff"), max_size=8)


@settings(max_examples=500)
@given(text=st.text(max_size=12) | SPACED)
def test_the_guard_is_taken_off_exactly(text):
    assert unguard_cell(guard_cell(text)) == text
    assert guard_cell(text) in (text, "'" + text)


def test_no_spreadsheet_takes_an_id_for_something_else():
    """Neither for a number, such as 1234567890123456 or 12e4567890123456, nor for an amount or a date."""
    ids = {prompt_id(f"What is {number}?") for number in range(20_000)}
    assert len(ids) == 20_000 and all(re.fullmatch("[a-p]{16}", identity) for identity in ids)
