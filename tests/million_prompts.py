"""
A pool of a million prompts from its files to the third epoch, without the model: `python -m tests.million_prompts
FOLDER NUM_PROMPTS` prints seconds, seconds of the processor and peak memory (GiB)
of each step as JSON.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import trl  # noqa: F401 - what a training run has in memory
from datasets import Dataset, load_from_disk

from pivottrace_trl import AnnotationLedger, PivotRoutedSampler, Route, TriageConfig, pool_ids
from pivottrace_trl.labels.vault import LabelVault
from pivottrace_trl.offline import peak_memory_gb
from pivottrace_trl.pool import Questions, read_rows
from pivottrace_trl.report.run import RunReport
from pivottrace_trl.routing.collapse import CollapseMonitor
from pivottrace_trl.routing.router import PoolRouter
from pivottrace_trl.routing.triage import resolve_budget
from pivottrace_trl.scoring.scorer import PoolScorer
from pivottrace_trl.training.run_state import Position, RunState

from .routing.examiners import FirstResponses


NUM_EPOCHS = 3
steps: dict[str, tuple[float, float, float]] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    start, cpu = time.perf_counter(), time.process_time()
    yield
    seconds = time.perf_counter() - start, time.process_time() - cpu
    steps[name] = (round(seconds[0], 1), round(seconds[1], 1), round(peak_memory_gb(), 2))
    sys.stderr.write(f"{name} {steps[name]}\n")


def write_pool(path: Path, num_prompts: int) -> None:
    def rows() -> Iterator[dict]:
        for i in range(num_prompts):
            question = f"Ann has {i} apples and buys {i % 97} more at the market. How many has she now?"
            yield {"prompt": [{"role": "user", "content": question}], "solution": str(i + i % 97)}

    cache = str(path.with_name("cache"))
    Dataset.from_generator(rows, cache_dir=cache).save_to_disk(path)


def make_router(ids: list[str], ledger: AnnotationLedger, vault: LabelVault, prompts: Dataset) -> PoolRouter:
    def texts(rows: Sequence[int]) -> Iterator[str]:
        return map(Questions().text, read_rows(prompts, rows))

    return PoolRouter(ids, ledger, vault, TriageConfig(probe_size=256), lambda rows: read_rows(prompts, rows), texts)


def main(folder: Path, num_prompts: int) -> None:
    random = np.random.default_rng(0)
    with step("write pool"):
        write_pool(folder / "pool", num_prompts)
    dataset = load_from_disk(str(folder / "pool"))
    with step("ids"):
        ids = pool_ids(dataset)
    budget = resolve_budget(0.293, num_prompts)
    with step("ledger and vault"):
        ledger = AnnotationLedger(folder / "ledger.sqlite", budget, ids)
        vault = LabelVault(dataset, ["solution"], ids)

    prompts = dataset.select_columns("prompt")
    router = make_router(ids, ledger, vault, prompts)
    report = RunReport(folder / "report")
    # Votes find an answer in most responses: they are suggested to whoever answers.
    router.suggestions.update((row, str(row)) for row in range(0, num_prompts, 2))
    difficulty = random.random(num_prompts)
    router.update_scores(np.arange(num_prompts), difficulty + 0.2 * random.random(num_prompts), difficulty / 10)
    examiner = FirstResponses(lambda row: bool(random.random() > difficulty[row]))
    with step("first routing"):
        result = router.first_routing(examiner)
    with step("report 0"):
        report.write_routing(0, router, result)
    sampler = PivotRoutedSampler(dataset, mini_repeat_count=8, batch_size=64, seed=0, routes=router.routes)
    for epoch in range(NUM_EPOCHS):
        if epoch:
            with step(f"routing {epoch}"):
                result = router.route(epoch, examiner)
            with step(f"report {epoch}"):
                report.write_routing(epoch, router, result)
            sampler.set_routes(result.routes)
        sampler.set_epoch(epoch)
        with step(f"epoch {epoch}"):
            seen = np.zeros(num_prompts, bool)
            indices = iter(sampler)
            while batch := list(islice(indices, 80_000)):
                rows = np.unique(batch)
                seen[rows] = True
                router.update_votes(rows.tolist(), np.clip(1.1 - difficulty[rows], 0, 1), [f"{row}" for row in rows])
                verified = rows[router.evidence.is_labelled[rows]]
                rates = np.clip(1 - difficulty[verified] + 0.1 * epoch, 0, 1).round(1)
                router.update_pass_rates(verified.tolist(), rates.tolist(), num_rollouts=8)
                router.update_scores(rows, difficulty[rows] + 0.2 * random.random(len(rows)), difficulty[rows] / 10)
            assert not seen[router.routes == Route.DISCARD].any()
    checkpoint = folder / "checkpoint-1"
    with step("save"):
        position = Position(0, NUM_EPOCHS - 1, sampler.num_prompts, 0, "look")
        RunState(router, PoolScorer(None, 0), {"monitor": CollapseMonitor()}).save(checkpoint, position)
    routes, probes, is_labelled = router.routes, router.probes, router.evidence.is_labelled
    del router, report, result  # whoever resumes is another process
    with step("load"):
        fresh = make_router(ids, ledger, vault, prompts)
        RunState(fresh, PoolScorer(None, 0), {"monitor": CollapseMonitor()}).load(checkpoint, seed=0)
    assert (fresh.routes == routes).all() and (fresh.probes == probes).all()
    del fresh
    with step("reopen ledger"):
        ledger.close()
        del ledger
        again = AnnotationLedger.open(folder / "ledger.sqlite")
    assert again.num_bought == budget, f"{again.num_bought} of {budget} labels bought"
    row = int(np.flatnonzero(is_labelled)[0])
    assert again.label(ids[row]) == {"solution": dataset[row]["solution"]}
    num_annotated = int((routes == Route.ANNOTATE).sum())
    sys.stdout.write(json.dumps({"labels": budget, "annotated": num_annotated, "steps": steps}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
