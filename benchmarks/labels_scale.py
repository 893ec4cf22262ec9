"""
Prompts and labels at scale: a pool of a million is asked for, exported, answered and opened again, each step in a
process of its own.

    python benchmarks/labels_scale.py --output labels_scale.json

Seconds are those of the whole process, its imports included; memory is its largest resident size (`VmHWM`). The
answers of the pool are numbers, those of a second, smaller one are formulas in LaTeX, which math-verify reads. Pool
and files of answers are made before the clock starts.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pivottrace_trl.labels.exchange import export_queue, import_answers
from pivottrace_trl.labels.exchange.exporting import write_dataset
from pivottrace_trl.labels.ledger import AnnotationLedger
from pivottrace_trl.labels.pool_file import POOL_FILE, write_pool
from pivottrace_trl.labels.queries import Query
from pivottrace_trl.labels.status import annotation_status


AUTHOR = "ann"


def make_pool(folder: Path, num_prompts: int, kind: str) -> None:
    """Ids, questions and answers of a pool, and the answers as files that people send."""
    from pivottrace_trl.pool import prompt_id

    # Half of them with a comma, for which a table needs quotes.
    questions = [
        f"Ann has {i} apples{', and' if i % 2 else '. She'} buys {i % 97} more. How many now?"
        for i in range(num_prompts)
    ]
    answers = [str(i + i % 97) if kind == "numbers" else rf"\frac{{{i}}}{{{i % 97 + 2}}}" for i in range(num_prompts)]
    table = pa.table({"prompt_id": [prompt_id(question) for question in questions], "answer": answers})
    pq.write_table(table.append_column("prompt", pa.array(questions)), folder / "source.parquet")
    # As people send them: in another order, with the question beside the answer.
    table = pq.read_table(folder / "source.parquet").take(pa.array(range(num_prompts - 1, -1, -1)))
    pq.write_table(table, folder / "answers.parquet")
    with (folder / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for batch in table.to_batches(1000):
            writer.writerows(zip(*batch.to_pydict().values(), strict=True))
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for batch in table.to_batches(1000):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def keep_pool(folder: Path) -> int:
    """What an attachment or a triage writes beside the ledger."""
    table = pq.read_table(folder / "source.parquet", columns=["prompt_id", "prompt"])
    ids, questions = table["prompt_id"].to_pylist(), table["prompt"].combine_chunks()
    write_pool(folder / POOL_FILE, ids, lambda rows: questions[rows[0] : rows[-1] + 1].to_pylist())
    return len(ids)


def ask(folder: Path) -> int:
    columns = pq.read_table(folder / "source.parquet", columns=["prompt_id", "prompt"]).to_pydict()
    ids: list[str] = columns["prompt_id"]
    queries = [
        Query(identity, prompt, "annotate", "ANNOTATE", (row * 7919 % len(ids)) / len(ids), str(row))
        for row, (identity, prompt) in enumerate(zip(ids, columns.pop("prompt"), strict=True))
    ]
    ledger = AnnotationLedger(folder / "asked.sqlite", len(ids), ids)
    ledger.request(queries)
    ledger.close()
    return len(ids)


def ask_again(folder: Path) -> int:
    """What every routing of a training run does: the queue is what it was, but for a tenth of it."""
    columns = pq.read_table(folder / "source.parquet", columns=["prompt_id", "prompt"]).to_pydict()
    ids: list[str] = columns["prompt_id"]
    ledger = AnnotationLedger(_copy(folder, "again"), len(ids), ids)
    num_left = len(ids) * 9 // 10
    ledger.request(
        [
            Query(identity, prompt, "annotate", "ANNOTATE", (row * 7919 % len(ids)) / len(ids), str(row))
            for row, (identity, prompt) in enumerate(zip(ids[:num_left], columns["prompt"], strict=False))
        ]
    )
    assert ledger.num_open == num_left
    return len(ids)


def attach(folder: Path) -> int:
    ids = pq.read_table(folder / "source.parquet", columns=["prompt_id"])["prompt_id"].to_pylist()
    return AnnotationLedger(folder / "asked.sqlite", len(ids), ids).num_open


def queue(folder: Path) -> int:
    return len(AnnotationLedger.open(folder / "asked.sqlite").queue())


def export(folder: Path, suffix: str) -> int:
    ledger = AnnotationLedger.open(folder / "asked.sqlite")
    return export_queue(ledger, folder / f"queue.{suffix}", suffix, with_suggestions=True)


def bring_in(folder: Path, suffix: str) -> int:
    ledger = AnnotationLedger.open(_copy(folder, suffix))
    report = import_answers(ledger, folder / f"answers.{suffix}", AUTHOR, price=0.05, progress=False)
    assert report.recorded == ledger.num_bought, report
    return report.recorded


def bring_in_own(folder: Path) -> int:
    """Labels that the user had, for prompts that nobody asked for."""
    path = folder / "own.sqlite"
    path.unlink(missing_ok=True)
    ids = pq.read_table(folder / "source.parquet", columns=["prompt_id"])["prompt_id"].to_pylist()
    ledger = AnnotationLedger(path, 1, ids)
    report = import_answers(ledger, folder / "answers.csv", "dataset", progress=False, is_own=True)
    assert report.recorded == len(ledger.own_ids) == len(ids), report
    return report.recorded


def bring_in_again(folder: Path) -> int:
    ledger = AnnotationLedger.open(folder / "csv.sqlite")
    return import_answers(ledger, folder / "answers.csv", AUTHOR, progress=False).duplicates


def reopen(folder: Path) -> int:
    return AnnotationLedger.open(folder / "csv.sqlite").num_bought


def backup(folder: Path) -> int:
    return AnnotationLedger.open(folder / "csv.sqlite").backup(folder / "copy.sqlite")


def labels_out(folder: Path, suffix: str) -> int:
    """`pivottrace annotate export --labels`: `to_dataset`, and the file."""
    labels = AnnotationLedger.open(folder / "csv.sqlite").to_dataset()
    write_dataset(labels, folder / f"labels.{suffix}", suffix)
    return len(labels)


def status(folder: Path) -> int:
    return annotation_status(AnnotationLedger.open(folder / "csv.sqlite")).bought


def watch(folder: Path) -> int:
    """A run that takes up what another process imports, as it comes."""
    path = _copy(folder, "watched")
    ledger = AnnotationLedger.open(path)
    code = f"import labels_scale as s; s._import_into({str(path)!r}, {str(folder / 'answers.csv')!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) as writer:
        longest, is_over = 0.0, False
        while not is_over:
            time.sleep(0.5)
            is_over = writer.poll() is not None
            start = time.perf_counter()
            ledger.refresh()
            longest = max(longest, time.perf_counter() - start)
    print(f"longest refresh {longest:.2f} s", file=sys.stderr)
    return ledger.num_bought


def _import_into(ledger: str, answers: str) -> None:
    import_answers(AnnotationLedger.open(ledger), Path(answers), AUTHOR, progress=False)


def _copy(folder: Path, name: str) -> Path:
    return Path(shutil.copy(folder / "asked.sqlite", folder / f"{name}.sqlite"))


STEPS: dict[str, Callable[[Path], int]] = {
    "write the pool": keep_pool,
    "ask for all": ask,
    "attach again": attach,
    "ask again, a tenth less": ask_again,
    "open, queue": queue,
    **{f"export {suffix}": partial(export, suffix=suffix) for suffix in ("jsonl", "csv", "parquet")},
    **{f"import {suffix}": partial(bring_in, suffix=suffix) for suffix in ("jsonl", "csv", "parquet")},
    "import csv, own labels": bring_in_own,
    "import csv again": bring_in_again,
    "open with all answers": reopen,
    **{f"labels out {suffix}": partial(labels_out, suffix=suffix) for suffix in ("parquet", "csv")},
    "status": status,
    "backup": backup,
    "refresh beside an import": watch,
}
# What is different where answers are formulas.
LATEX_STEPS = ("write the pool", "ask for all", "import csv", "import csv again")


def run_step(name: str, folder: Path) -> dict[str, Any]:
    """Run a step in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--folder", str(folder), "--step", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, failed, usage = os.wait4(process.pid, 0)
        process.returncode = failed
    if failed:
        raise RuntimeError(f"the step {name!r} failed")
    rows, peak = output.split()[-2:]
    return {
        "step": name,
        "rows": int(rows),
        "seconds": round(time.perf_counter() - start, 1),
        "CPU seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "GB": round(int(peak) * 1024 / 1e9, 2),
    }


def peak_kib() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=1_000_000)
    parser.add_argument("--num-formulas", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where files go, and stay (default: a temporary one)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.step:
        print(STEPS[args.step](args.folder), peak_kib())
        return
    from common import report  # loads torch, which no step needs

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind, num_prompts in (("numbers", args.num_prompts), ("formulas", args.num_formulas)):
            folder = (args.folder or Path(temporary)) / kind
            if num_prompts and not (folder / "answers.jsonl").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make_pool(folder, num_prompts, kind)
            steps = [name for name in args.only if kind == "numbers" or name in LATEX_STEPS]
            for name in steps if num_prompts else []:
                if name == "ask for all":
                    (folder / "asked.sqlite").unlink(missing_ok=True)
                row = {"answers": kind, **run_step(name, folder), "load": round(os.getloadavg()[0], 1)}
                print(row, flush=True)
                rows.append(row)
    report("Prompts and labels at scale, CPU", rows, args.output)


if __name__ == "__main__":
    main()
