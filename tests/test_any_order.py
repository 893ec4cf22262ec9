"""Whatever the order in which labels are had, asked for, bought and taken back, none is paid for twice."""

import json
import random
import sqlite3
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from pivottrace_trl import AnnotationLedger, Answer
from pivottrace_trl.labels import LabelVault, Outcome
from pivottrace_trl.labels.exchange import export_queue, import_answers
from pivottrace_trl.labels.pool_file import POOL_FILE, write_pool
from pivottrace_trl.labels.waiting import People
from pivottrace_trl.pool import Questions
from pivottrace_trl.routing.router import PoolRouter
from pivottrace_trl.routing.triage import TriageConfig

from .routing.examiners import FirstResponses


NUM_PROMPTS = 20
NUM_STEPS = 12
POOL = Dataset.from_dict(
    {
        "prompt": [f"question {i}" for i in range(NUM_PROMPTS)],
        "solution": [f"truth-{i:02d}" for i in range(NUM_PROMPTS)],
    }
)
IDS = Questions().ids(POOL)


class Interrupted(Exception):
    pass


class Endpoint:
    """Answers most of what it is asked, declines some, charges for both, and may be cut off."""

    batch_size = 3

    def __init__(self, world: "World", num_answers: int):
        self._world, self._left = world, num_answers

    def ask(self, queries):
        for query in queries:
            if self._left == 0:
                raise Interrupted
            self._left -= 1
            text = None if self._world.chance.random() < 0.2 else self._world.says(query.prompt_id, "model")
            self._world.charged.append(0.25)
            yield Answer(query.prompt_id, text, "model", 0.25)


class World:
    """One run with everything that may be done to it, and what its annotators charged."""

    def __init__(self, folder, seed: int):
        self.folder, self.chance = folder, random.Random(seed)
        self.budget, self.charged, self.said = 6, [], set()
        self.scores = np.random.default_rng(seed).random(NUM_PROMPTS)
        self.start: int | None = None
        self.open_run().close()

    # Who opens the ledger, as a run does and beside it.

    def open_run(self) -> AnnotationLedger:
        write_pool(self.folder / POOL_FILE, IDS, lambda rows: [POOL[row]["prompt"] for row in rows])
        return AnnotationLedger(self.folder / "ledger.sqlite", self.budget, IDS, "solution", "text")

    def beside(self) -> AnnotationLedger:
        return AnnotationLedger.open(self.folder / "ledger.sqlite")

    def says(self, identity: str, author: str) -> str:
        text = f"{author}-{identity}-{self.chance.randrange(2)}"
        self.said.add(text)
        return text

    # What may be done, in any order.

    def triage(self) -> None:
        self._route(None, epochs=0)

    def triage_with_column(self) -> None:
        self._route("column", epochs=0)

    def train_on_people(self) -> None:
        self._route(None, epochs=2)

    def train_on_column(self) -> None:
        self._route("column", epochs=2)

    def train_on_endpoint(self) -> None:
        self._route("endpoint", epochs=2)

    def train_on_endpoint_that_dies(self) -> None:
        self._route("endpoint", epochs=1, num_answers=self.chance.randrange(4))

    def resume(self) -> None:
        """As a run that was killed before its first checkpoint: it goes back to where it began."""
        self._route("column", epochs=1, start=self.start)

    def _route(self, annotator, epochs: int, num_answers: int = 1000, start: int | None = None) -> None:
        ledger = self.open_run()
        oracle = {None: People(ledger), "column": LabelVault(POOL, ["solution"], IDS)}.get(annotator)
        oracle = oracle or Endpoint(self, num_answers)
        chance = self.chance
        rows = lambda rows: [{"prompt": POOL[int(row)]["prompt"]} for row in rows]  # noqa: E731
        router = PoolRouter(IDS, ledger, oracle, TriageConfig(probe_size=3, tau_high=0.9, tau_low=0.3), rows)
        router.start = self.start = ledger.last_event if start is None else start
        router.update_scores(np.arange(NUM_PROMPTS), self.scores, self.scores)
        examiner = FirstResponses(lambda row: bool(self.scores[row] < 0.5))
        try:
            router.first_routing(examiner, buy=epochs > 0)
            for epoch in range(1, epochs + 1):
                seen = chance.sample(range(NUM_PROMPTS), 8)
                router.update_votes(seen, [chance.random() for _ in seen], ["a vote"] * len(seen))
                router.route(epoch, examiner)
        except RuntimeError as error:
            assert isinstance(error.__cause__, Interrupted)
        # What a reward function may be shown.
        for row, identity in enumerate(IDS):
            label = router.label(row)
            assert label is None or identity in ledger.bought_ids | ledger.own_ids
        ledger.close()

    def raise_budget(self) -> None:
        self.budget = min(self.budget + 3, NUM_PROMPTS)
        self.open_run().close()

    def import_queue(self) -> None:
        ledger, path = self.beside(), self.folder / f"queue-{self.chance.randrange(10**9)}.csv"
        export_queue(ledger, path, "csv")
        lines = path.read_text().splitlines()
        asked = [line.split(",")[0] for line in lines[1:]]
        ledger.close()
        self._import(self.chance.sample(asked, min(3, len(asked))), price=1.0)

    def import_any(self) -> None:
        self._import(self.chance.sample(IDS, 3), price=1.0)

    def import_again_with_replace(self) -> None:
        self._import(self.chance.sample(IDS, 3), price=1.0, replace=True)

    def import_own(self) -> None:
        self._import(self.chance.sample(IDS, 3), price=1.0, is_own=True)

    def _import(self, ids: list[str], price: float, **options) -> None:
        if not ids:
            return
        ledger, path = self.beside(), self.folder / f"answers-{self.chance.randrange(10**9)}.jsonl"
        rows = [{"prompt_id": identity, "answer": self.says(identity, "file")} for identity in ids]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for _ in range(2):
            report = import_answers(ledger, path, "file", price, progress=False, **options)
            self.charged += [0.0 if options.get("is_own") else price] * report.recorded
        assert report.recorded == 0  # the second time
        ledger.close()

    def answer_at_the_desk(self) -> None:
        ledger = self.beside()
        for query in ledger.queue(2):
            if ledger.claim(query.prompt_id, "ann"):
                answer = Answer(query.prompt_id, self.says(query.prompt_id, "ann"), "ann", 2.0)
                outcomes = ledger.record([answer, answer])
                assert outcomes[0] in (Outcome.RECORDED, Outcome.OVER_BUDGET) and outcomes[1] is not Outcome.RECORDED
                self.charged += [2.0] * outcomes.count(Outcome.RECORDED)
        ledger.close()

    def skip_and_break(self) -> None:
        ledger = self.beside()
        for query, act in zip(ledger.queue(2), (ledger.skip, ledger.mark_broken), strict=False):
            act(query.prompt_id, "ann")
        ledger.close()

    def undo(self) -> None:
        ledger = self.beside()
        for author in ("ann", "file"):
            ledger.undo(author)
        ledger.close()

    # What always holds.

    def check(self) -> None:
        ledger = self.beside()
        with sqlite3.connect(ledger.path) as connection:
            purchases = [identity for (identity,) in connection.execute("SELECT prompt_id FROM purchases")]
        connection.close()
        assert len(purchases) == len(set(purchases)) == ledger.num_bought <= self.budget == ledger.budget
        events = ledger.events()
        answered = {event["prompt_id"] for event in events if event["kind"] == "answer"}
        assert answered == set(purchases)
        assert ledger.spent == pytest.approx(sum(self.charged))
        assert sum(event["price"] for event in events if event["kind"] != "unused") == pytest.approx(ledger.spent)
        undone = {event["undoes"] for event in events}
        standing = Counter(
            event["prompt_id"]
            for event in events
            if event["kind"] in ("answer", "own") and event["event_id"] not in undone
        )
        assert all(number == 1 for number in standing.values())
        for row, identity in enumerate(IDS):
            label = ledger.label(identity)
            assert (label is not None) == (identity in standing)
            if label is not None:
                is_own = identity in ledger.own_ids
                assert is_own or identity in purchases
                assert label["solution"] in self.said | {f"truth-{row:02d}"}
        if standing:
            assert sorted(ledger.to_dataset(POOL)["prompt_id"]) == sorted(standing)
        # Labels of the dataset are nowhere but where they were bought.
        truths = {f"truth-{row:02d}" for row, identity in enumerate(IDS) if identity not in purchases}
        for path in self.folder.iterdir():
            content = path.read_bytes()
            assert not [truth for truth in truths if truth.encode() in content], path.name
        ledger.close()


STEPS = [
    World.triage, World.triage_with_column, World.train_on_people, World.train_on_column, World.train_on_endpoint,
    World.train_on_endpoint_that_dies, World.resume, World.raise_budget, World.import_queue, World.import_any,
    World.import_again_with_replace, World.import_own, World.answer_at_the_desk, World.skip_and_break, World.undo,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_paid_twice_in_any_order(seed, tmp_path):
    world = World(tmp_path, seed)
    for step in random.Random(seed).choices(STEPS, k=NUM_STEPS):
        step(world)
        world.check()
