"""The ledger under SIGKILL and under several writers: no answer lost, none paid twice, the budget never exceeded."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time

import pytest

from pivottrace_trl.labels.ledger import AnnotationLedger
from pivottrace_trl.labels.queries import Answer, Outcome, Query


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
IDS = [f"p{number:03d}" for number in range(120)]
BUDGET = 80


def check(path) -> AnnotationLedger:
    """Everything that must hold at any moment, read from the file with plain SQL."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    purchases = [row[0] for row in connection.execute("SELECT prompt_id FROM purchases")]
    answered = [row[0] for row in connection.execute("SELECT DISTINCT prompt_id FROM events WHERE kind = 'answer'")]
    assert sorted(purchases) == sorted(answered)
    assert len(purchases) == len(set(purchases)) <= BUDGET
    undone = "SELECT undoes FROM events WHERE undoes IS NOT NULL"
    query = f"SELECT count(*) FROM events WHERE kind = 'answer' AND event_id NOT IN ({undone})"
    (standing,) = connection.execute(query).fetchone()
    connection.close()
    ledger = AnnotationLedger.open(path)
    assert standing == len(ledger.bought_ids) and ledger.num_bought == len(purchases)
    return ledger


def write_at_random(path, seed, acknowledged):
    """Ask, answer, undo and skip until killed; tell of each answer after it was recorded."""
    rng = random.Random(seed)
    ledger = AnnotationLedger.open(path)
    author = "ann"
    acknowledged.send(("ready", None, None))
    while True:
        identity = rng.choice(IDS)
        action = rng.random()
        if action < 0.1:
            ledger.request([Query(i, f"text of {i}", score=rng.random()) for i in rng.sample(IDS, 30)])
        elif action < 0.5:
            if (query := ledger.undo(author)) is not None:
                acknowledged.send(("undone", query.prompt_id, None))
        elif action < 0.55:
            ledger.skip(identity, author)
        else:
            value = f"{seed}-{rng.random()}"
            chosen = rng.sample(IDS, rng.choice([1, 1, 5]))
            outcomes = ledger.record([Answer(i, {"solution": value}, author) for i in chosen])
            for i, outcome in zip(chosen, outcomes, strict=True):
                if outcome is Outcome.RECORDED:
                    acknowledged.send(("answered", i, value))


def test_killed_two_hundred_times(tmp_path):
    path, rng = tmp_path / "ledger.sqlite", random.Random(0)
    AnnotationLedger(path, BUDGET, IDS).close()
    labels: dict[str, str] = {}
    num_acknowledged = round_number = 0
    # On a busy machine a writer gets less done before it is killed: there are more of them then.
    while round_number < 200 or num_acknowledged <= 400:
        round_number += 1
        receiver, sender = fork.Pipe(duplex=False)
        writer = fork.Process(target=write_at_random, args=(path, round_number, sender), daemon=True)
        writer.start()
        sender.close()
        if round_number % 4:  # every fourth may be killed while it opens the file
            receiver.poll(60)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        messages = []
        try:
            while receiver.poll():
                messages.append(receiver.recv())
        except (EOFError, OSError):
            pass
        receiver.close()
        ledger = check(path)
        for kind, identity, value in messages:
            if kind == "ready":
                continue
            if kind == "answered":
                labels[identity] = value
                num_acknowledged += 1
            else:
                labels.pop(identity, None)
        # The last action may have been recorded without having been told of; everything else stands as told.
        standing = {i: ledger.label(i)["solution"] for i in ledger.bought_ids}
        untold = {i for i in standing.keys() | labels.keys() if standing.get(i) != labels.get(i)}
        assert len(untold) <= 5
        assert all(standing[i].startswith(f"{round_number}-") for i in untold if i in standing)
        labels = standing
        ledger.close()
        assert round_number < 1000, f"only {num_acknowledged} writes in {round_number} rounds"


def import_answers(path, author):
    ledger = AnnotationLedger.open(path)
    rng = random.Random(author)
    for _ in range(60):
        chosen = rng.sample(IDS, 4)
        ledger.record([Answer(i, {"solution": i}, author) for i in chosen])
        time.sleep(0.003)


class Everything:
    batch_size = 16

    def ask(self, queries):
        for query in queries:
            time.sleep(0.005)
            yield Answer(query.prompt_id, {"solution": query.prompt_id}, "oracle")


def train(path):
    ledger = AnnotationLedger(path, BUDGET, IDS)
    for epoch in range(4):
        ledger.request([Query(i, i) for i in random.Random(epoch).sample(IDS, 60)], epoch)
        ledger.buy(Everything())


@pytest.mark.parametrize("is_killed", [False, True])
def test_two_importers_and_one_trainer(is_killed, tmp_path):
    path, rng = tmp_path / "ledger.sqlite", random.Random(1)
    ledger = AnnotationLedger(path, BUDGET, IDS)
    ledger.request([Query(i, i) for i in IDS])
    ledger.close()
    for _ in range(10 if is_killed else 1):
        processes = [fork.Process(target=train, args=(path,))]
        processes += [fork.Process(target=import_answers, args=(path, name)) for name in ("ann", "bob")]
        for process in processes:
            process.start()
        if is_killed:
            time.sleep(rng.uniform(0.01, 0.15))
            for process in processes:
                process.kill()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0 or is_killed
        ledger = check(path)
        assert all(ledger.label(i) == {"solution": i} for i in ledger.bought_ids)
        ledger.close()
    if not is_killed:
        assert ledger.num_bought == BUDGET
        authors = {ledger.author(i) for i in ledger.bought_ids}
        assert authors == {"ann", "bob", "oracle"}
