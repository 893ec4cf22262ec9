"""The completions table of the trainer says of each row its route, its group's vote, and where its label is from."""

import math
from collections import Counter

import pandas as pd
import pytest
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from pivottrace_trl import TriageConfig
from pivottrace_trl.training.batch_labels import TABLE_COLUMNS

from ..conftest import FIRST_DIGIT, attach, digit_reward, make_pool


CONFIG = TriageConfig(probe_size=6, min_agreement=0.7)
TABLE = {"log_completions": True, "num_completions_to_print": 0}


def read_tables(folder) -> dict[int, pd.DataFrame]:
    """The tables by the step at which they were logged."""
    tables = [pd.read_parquet(path) for path in sorted((folder / "completions").glob("*.parquet"))]
    return {int(table["step"][0]): table for table in tables}


class Tables(TrainerCallback):
    """The completions that a trainer has when it logs a step; `RLOOTrainer` writes no file of them."""

    def __init__(self, trainer):
        self.trainer, self.seen = trainer, []

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            kept = self.trainer._logs
            columns = {name: list(kept[name]) for name in ("prompt", "completion")}
            self.seen.append(
                {**columns, **{k: list(v) for k, v in [*kept["rewards"].items(), *kept["extra"].items()]}}
            )


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_every_row_tells_route_vote_and_source(kind, make_trainer, tmp_path):
    pool = make_pool(24)
    # Some labels are the user's own, the others are asked for.
    labels = [label if row % 3 == 0 else None for row, label in enumerate(pool["solution"])]
    trainer = make_trainer(pool.remove_columns("solution").add_column("solution", labels), kind=kind, **TABLE)
    bought = {f"{row}+{row % 7}=?": str(row + row % 7) for row in range(24)}
    callback = attach(
        trainer,
        4,
        annotator=lambda rows: [bought[row["prompt"][0]["content"]] for row in rows],
        config=TriageConfig(min_agreement=0.5),
    )
    tables = Tables(trainer)
    trainer.add_callback(tables)
    trainer.train()
    assert len(tables.seen) == trainer.state.global_step > 8
    sources = Counter()
    for table in tables.seen:
        assert {len(values) for values in table.values()} == {8}
        for group in (slice(0, 4), slice(4, 8)):
            # A group shares its vote.
            (said,) = set(zip(*(table[name][group] for name in TABLE_COLUMNS), strict=True))
            route, vote, agreement, source = said
            answers = [FIRST_DIGIT.extract(completion[0]["content"]) for completion in table["completion"][group]]
            counts = Counter(answer for answer in answers if answer is not None)
            most = max(counts.values(), default=0)
            assert agreement == most / 4 and (counts[vote] == most if most else vote is None)
            row = int(table["prompt"][group][0][0]["content"].split("+")[0])
            assert (source == "own") == (row % 3 == 0)
            assert (source == "bought") == (callback.router.prompt_ids[row] in callback.ledger.bought_ids)
            assert source == ("vote" if agreement >= 0.5 else "none") or source in ("own", "bought")
            assert route == ("annotate" if source in ("own", "bought") else "weak")
            is_blank = [math.isnan(reward) for reward in table["digit_reward"][group]]
            assert is_blank == [source == "none"] * 4
            sources[source] += 1
    assert set(sources) == {"own", "bought", "none", "vote"}


def test_evaluation_is_blank(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, **TABLE)
    attach(trainer, config=CONFIG)
    trainer.evaluate(make_pool(60).select(range(40, 48)))
    (table,) = read_tables(tmp_path / "run").values()
    assert len(table) == 8 and table[list(TABLE_COLUMNS)].isna().all(axis=None)
    trainer.train()
    assert not read_tables(tmp_path / "run")[2][["route", "agreement", "label_source"]].isna().any(axis=None)
    for data in (make_pool(60).select(range(40, 48)), trainer.train_dataset.select(range(8))):
        trainer.evaluate(data)
        table = read_tables(tmp_path / "run")[2]
        assert len(table) == 8 and table[list(TABLE_COLUMNS)].isna().all(axis=None)


def test_it_costs_nothing_where_it_is_off(make_trainer, monkeypatch):
    asked = []
    trainer = make_trainer(max_steps=1)
    monkeypatch.setattr(trainer, "_log_completion_extra", lambda *args: asked.append(args))
    callback = attach(trainer, config=CONFIG)
    monkeypatch.setattr(callback.label_router, "table", lambda batch: asked.append(batch))
    trainer.train()
    assert asked == []


def test_columns_of_the_user_stay(make_trainer, tmp_path):
    def agreement(completions, solution, log_extra, **kwargs):
        log_extra("vote", ["mine"] * len(completions))
        return digit_reward(completions, solution)

    trainer = make_trainer(reward_funcs=agreement, **TABLE)
    attach(trainer, config=TriageConfig(probe_size=6, min_agreement=1.0))
    trainer.train()
    for table in read_tables(tmp_path / "run").values():
        # The function is shown groups with a label only; its column is blank for others.
        assert [vote == "mine" for vote in table["vote"]] == [source != "none" for source in table["label_source"]]
        assert table["agreement"].dropna().isin([0.0, 1.0]).all(), "the rewards of the function called `agreement`"
    assert any((table["label_source"] == "none").all() for table in read_tables(tmp_path / "run").values())
