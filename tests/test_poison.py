"""
A secret of its own is planted in every place of every row where a value can hide. Then everything that a run shows or
leaves behind is searched for secrets of rows whose label was not bought.
"""

import dataclasses
import functools
import re
import sqlite3
import traceback
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import TrainerState
from trl import GRPOTrainer, RLOOTrainer

from pivottrace_trl import AnnotatorPanel, Answer, TriageConfig
from pivottrace_trl.cli import main

from .conftest import FIRST_DIGIT, LORA, attach


NUM_PROMPTS = 10
SECRET = re.compile(r"qz-(\w+)-(\d\d)-xj", re.IGNORECASE)


def secret(place: str, row: int) -> str:
    return f"qz-{place}-{row:02d}-xj"


def poisoned_pool(first: int = 0, num_prompts: int = NUM_PROMPTS) -> Dataset:
    """Secrets as labels, in other columns, nested, in lists, in bytes, in upper case, renamed and mapped."""

    def row(i: int) -> dict:
        user = {"role": "user", "content": f"{i}+{i % 7}=?"}
        return {
            "prompt": [user],
            "solution": secret("solution", i),
            "level": f"level {i}",
            "numeric": secret("numeric", i),
            "answer": secret("answer", i),
            "Answer": secret("upper", i).upper(),
            "correct_answer": secret("correct", i),
            "gold_solution": secret("gold", i),
            "rationale": f"First we see that {secret('rationale', i)} follows.",
            "completion": secret("completion", i),
            "messages": [user, {"role": "assistant", "content": secret("messages", i)}],
            "metadata": {"answer": secret("metadata", i), "source": "web"},
            "reward_model": {"ground_truth": {"target": [secret("target", i)]}, "style": "rule"},
            "extra_info": {"index": i, "deep": [{"deeper": [secret("deep", i)]}]},
            "choices": ["none", secret("choices", i)],
            "blob": secret("blob", i).encode(),
            "reference": secret("renamed", i),
        }

    pool = Dataset.from_list([row(i) for i in range(first, first + num_prompts)])
    return pool.rename_column("reference", "colour").map(
        lambda row: {"mapped": row["solution"].replace("solution", "mapped")}
    )


# TRL hands on no column of the name `completion`.
PLACES = {place.lower() for place, _ in SECRET.findall(str(poisoned_pool()[0]))} - {"completion"}


def secrets(*values) -> set[tuple[str, int]]:
    """Place and row of every secret anywhere in the values."""
    found = set()
    for value in values:
        if isinstance(value, dict):
            found |= secrets(*value.keys(), *value.values())
        elif isinstance(value, list | tuple | set):
            found |= secrets(*value)
        elif isinstance(value, TrainerState):
            found |= secrets(vars(value))
        else:
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            found |= {(place.lower(), int(row)) for place, row in SECRET.findall(text)}
    return found


def secrets_in_file(path: Path) -> set[tuple[str, int]]:
    """Also in what is compressed or in pages."""
    found = secrets(path.read_bytes())
    if path.suffix == ".parquet":
        found |= secrets(pq.read_table(path).to_pydict())
    if path.suffix == ".sqlite":
        with sqlite3.connect(path) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found |= secrets([list(connection.execute(f"SELECT * FROM {name}")) for name in names])
        connection.close()
    return found


class Watcher:
    """Reward functions that take what they can get, note it, and write it into the logs of the trainer."""

    __name__ = "Watcher"

    def __init__(self, fails_after: int | None = None):
        self.passed: set[tuple[str, int]] = set()
        self.levels: set[str] = set()
        self.num_weak, self.num_calls, self.fails_after = 0, 0, fails_after

    def note(self, **arguments) -> list[float]:
        self.num_calls += 1
        self.passed |= secrets(arguments)
        self.levels |= set(arguments.get("level", ()))
        size = len(arguments["completions"])
        columns = {name: value for name, value in arguments.items() if isinstance(value, list)}
        arguments["log_extra"]("everything", [str({k: v[i] for k, v in columns.items()}) for i in range(size)])
        arguments["log_metric"]("calls", self.num_calls)
        if self.num_calls == self.fails_after:
            raise RuntimeError(f"the judge died of {columns}")
        return [float(len(completion[0]["content"]) % 2) for completion in arguments["completions"]]

    def verify(self, solution, level, scale, **kwargs):
        self.num_weak += sum(label.isdigit() for label in solution)
        return [scale * reward for reward in self.note(solution=solution, level=level, **kwargs)]

    def second(self, completions, numeric, **kwargs):
        assert all(numeric), "shown a row without the column that it requires"
        return self.note(completions=completions, numeric=numeric, **kwargs)

    def functions(self):
        """A partial function, a bound method and an object."""
        return [functools.partial(self.verify, scale=1.0), self.second, self]

    def __call__(self, **kwargs):
        return self.note(**kwargs)


class AsyncWatcher(Watcher):
    __name__ = "AsyncWatcher"

    async def verify(self, solution, level, scale, **kwargs):
        return super().verify(solution, level, scale, **kwargs)

    async def second(self, completions, numeric, **kwargs):
        return super().second(completions, numeric, **kwargs)

    async def __call__(self, **kwargs):
        return self.note(**kwargs)


def attach_with_secrets(trainer, **options):
    config = TriageConfig(probe_size=2, tau_high=1.0, min_agreement=0.0)
    return attach(trainer, 3, label_column="solution", free_columns=["level"], config=config, **options)


def bought_rows(callback) -> set[int]:
    return {row for row, identity in enumerate(callback.router.prompt_ids) if callback.ledger.label(identity)}


CASES = [
    pytest.param(GRPOTrainer, Watcher, LORA, "before", id="grpo-sync-lora"),
    pytest.param(GRPOTrainer, AsyncWatcher, None, "before", id="grpo-async-full"),
    pytest.param(GRPOTrainer, Watcher, LORA, "after", id="grpo-sync-lora-after"),
    pytest.param(RLOOTrainer, Watcher, None, "before", id="rloo-sync-full"),
    pytest.param(RLOOTrainer, AsyncWatcher, LORA, "after", id="rloo-async-lora-after"),
]


@pytest.mark.parametrize(("kind", "watch", "peft_config", "buy"), CASES)
def test_nothing_that_was_not_bought_is_seen_anywhere(
    kind, watch, peft_config, buy, make_trainer, tmp_path, capfd, caplog, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100000")  # the table of completions is printed without line breaks in its cells
    watcher, run = watch(), tmp_path / "run"
    trainer = make_trainer(
        poisoned_pool(),
        watcher.functions(),
        kind=kind,
        peft_config=peft_config,
        max_steps=5,
        beta=0.0,
        log_completions=True,
        save_strategy="steps",
        save_steps=4,
    )
    # Ids may be made of what is locked up, and tell nothing of it.
    callback = attach_with_secrets(trainer, buy=buy, id_column="numeric" if peft_config is None else None)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    bought = bought_rows(callback)
    assert any("pivottrace/labels_bought_after" in e for e in trainer.state.log_history) == (buy == "after")
    callback.detach()
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    assert 0 < len(bought) < NUM_PROMPTS and watcher.num_weak

    console = capfd.readouterr()
    places = {
        "rewards": watcher.passed,
        "log": secrets(trainer.state.log_history, caplog.text),
        "console": secrets(console.out, console.err),
        **{str(path.relative_to(tmp_path)): secrets_in_file(path) for path in tmp_path.rglob("*") if path.is_file()},
    }
    for where, found in places.items():
        assert {row for _, row in found} <= bought, f"{where} shows what was not bought"
    # What was bought is found: with its whole row, and where the functions wrote it.
    assert {place for place, _ in watcher.passed} == PLACES
    assert {row for _, row in watcher.passed} == bought
    tables = {where: found for where, found in places.items() if where == "console" or "completions" in where}
    assert bool(list(run.glob("completions/*.parquet"))) == (kind is GRPOTrainer)
    everything = {found for found in watcher.passed if found[0] != "numeric"}  # which only `second` names
    assert set().union(*tables.values()) >= everything and tables["console"] >= everything
    assert places[str(callback.ledger.path.relative_to(tmp_path))] == {("solution", row) for row in bought}
    assert "report/report.html" in places
    # A column that is declared free is shown of every row that is rewarded.
    assert len(watcher.levels) > len(bought) and watcher.levels <= {f"level {row}" for row in range(NUM_PROMPTS)}


def partly_filled(num_filled: int) -> Dataset:
    """What is filled is the user's own where there is an annotator; every other column is as poisoned as before."""
    return poisoned_pool().map(
        lambda row, number: {"solution": row["solution"] if number < num_filled else [None, "", " "][number % 3]},
        with_indices=True,
    )


def test_queries_hold_no_label_and_nothing_that_is_locked(make_trainer):
    asked = []

    class Annotator:
        batch_size = 2

        def ask(self, queries):
            asked.extend(queries)
            return [Answer(query.prompt_id, "7", "me") for query in queries]

    def reward(completions, solution, **kwargs):
        return [1.0] * len(completions)

    pool = partly_filled(1)
    trainer = make_trainer(pool, reward, max_steps=1)
    callback = attach_with_secrets(trainer, annotator=Annotator())
    trainer.train()
    assert asked and callback.summary()["annotated"] == len(asked)
    assert secrets([dataclasses.asdict(query) for query in asked]) == set()
    for query in asked:
        row = callback.router.prompt_ids.index(query.prompt_id)
        assert query.row == {"prompt": pool[row]["prompt"], "level": f"level {row}"} and row >= 1


@pytest.mark.parametrize("annotator", ["queue", lambda rows: ["7"] * len(rows)], ids=["queue", "function"])
def test_own_labels_are_all_that_is_read_beside_an_annotator(annotator, make_trainer, tmp_path, capfd, monkeypatch):
    """The user's word opens the label of the rows that have one: no other column of theirs, and no other row."""
    monkeypatch.setenv("COLUMNS", "100000")
    watcher, own = Watcher(), {("solution", row) for row in range(4)}

    def reward(completions, solution, **kwargs):
        return watcher.note(completions=completions, solution=solution, **kwargs)

    trainer = make_trainer(
        partly_filled(4), reward, num_train_epochs=3, log_completions=True, save_strategy="steps", save_steps=4
    )
    callback = attach_with_secrets(trainer, annotator=annotator)
    trainer.train()
    assert callback.ledger.own_ids == set(callback.router.prompt_ids[:4])
    callback.detach()
    console = capfd.readouterr()
    places = {
        "log": secrets(trainer.state.log_history),
        "console": secrets(console.out, console.err),
        **{str(path.relative_to(tmp_path)): secrets_in_file(path) for path in tmp_path.rglob("*") if path.is_file()},
    }
    for where, found in places.items():
        assert found <= own, f"{where} shows what is not the user's own"
    assert watcher.passed == places[str(callback.ledger.path.relative_to(tmp_path))] == own


def test_without_an_annotator_filled_rows_are_bought_as_ever(make_trainer, tmp_path):
    """A column that is filled in part is no word of the user's: it sells, and the budget is the limit."""
    watcher = Watcher()
    trainer = make_trainer(partly_filled(8), watcher.functions(), max_steps=4)
    callback = attach_with_secrets(trainer)
    assert secrets_in_file(callback.ledger.path) == set()
    trainer.train()
    assert callback.ledger.own_ids == set() and len(bought_rows(callback)) <= 3
    found = set().union(*(secrets_in_file(path) for path in (tmp_path / "run").rglob("*") if path.is_file()))
    assert {row for _, row in found | watcher.passed} <= bought_rows(callback)


def test_what_models_disagree_on_is_seen_nowhere_but_in_the_ledger(make_trainer, tmp_path, capfd, caplog):
    """Opinions are no labels: no reward, log, console, queue or other file shows one; people answer instead."""
    watcher, run = Watcher(), tmp_path / "run"

    def sure(rows):
        return ["7" if row["level"] == "level 3" else secret("opinion", int(row["level"].split()[1])) for row in rows]

    def unsure(rows):
        return ["7"] * len(rows)

    def verify(solution, **kwargs):
        return watcher.note(solution=solution, **kwargs)

    trainer = make_trainer(partly_filled(0), verify, num_train_epochs=2, log_completions=True, save_strategy="epoch")
    panel = AnnotatorPanel([sure, unsure], answer_format=FIRST_DIGIT)
    callback = attach_with_secrets(trainer, annotator=[panel, "queue"])
    assert callback.router.asks_people
    trainer.train()
    ids = callback.router.prompt_ids
    opinions = [said for identity in ids for said in callback.ledger.opinions(identity)]
    asked = {ids.index(said.prompt_id) for said in opinions}
    assert bought_rows(callback) == asked & {3} and len(asked) >= 3
    # Whoever was asked once is not asked again, however often the pool is routed.
    assert len(opinions) == 3 * len(asked - {3}) + 2 * len(asked & {3})
    open_rows = {ids.index(query.prompt_id) for query in callback.ledger.queue()}
    assert open_rows <= asked - {3} and not any(callback.ledger.has_declined(identity) for identity in ids)
    callback.detach()
    assert main(["annotate", "export", str(run)]) == main(["annotate", "status", str(run)]) == 0
    ledger = run / "_pivottrace" / "ledger.sqlite"
    others = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(ledger.name)]
    console = capfd.readouterr()
    shown = [watcher.passed, secrets(trainer.state.log_history, caplog.text, console.out, console.err)]
    assert watcher.num_calls and set().union(*shown, *map(secrets_in_file, others)) == set()
    assert secrets_in_file(ledger) == {("opinion", row) for row in asked - {3}}


def test_no_exception_tells_what_was_not_bought(make_trainer):
    watcher = Watcher(fails_after=8)
    trainer = make_trainer(poisoned_pool(), watcher.functions(), num_train_epochs=3)
    callback = attach_with_secrets(trainer)
    with pytest.raises(RuntimeError, match="the judge died") as error:
        trainer.train()
    told = secrets("".join(traceback.format_exception(error.value)))
    assert {row for _, row in told} <= bought_rows(callback) != set() and watcher.num_weak
