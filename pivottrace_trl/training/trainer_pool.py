"""Reads the pool of a trainer once, when a callback is made: ids, columns, hidden labels, checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset

from ..labels.vault import LabelVault
from ..pool import Questions, read_rows
from .columns import PoolColumns, find_columns, find_verifier
from .prompts import check_evaluation_data, check_form_of_prompts, check_prompts


@dataclass(frozen=True)
class TrainerPool:
    """
    The pool of a trainer. Its `dataset` is not changed. The `vault` hides everything but the prompts. `verifier` is
    the index of the reward function that decides whether a response is right.
    """

    dataset: Dataset
    questions: Questions
    ids: list[str]
    columns: PoolColumns
    vault: LabelVault
    verifier: int

    @cached_property
    def places(self) -> dict[str, int]:
        """Row of every question of the pool, see [`Questions.places`]."""
        return self.questions.places(self.dataset)

    def describe_labels(self, has_annotator: bool) -> str | None:
        """What becomes of rows with a label, or without one, where a dataset has both; `None` where it is plain."""
        num, column = self.vault.num_labels, self.columns.label
        num_empty = len(self.ids) - num
        if has_annotator and num:
            rest = f"the budget is for the other {num_empty}" if num_empty else "nothing is left to be asked for"
            return f"{num} rows have a `{column}` already, which is yours and costs nothing; {rest}"
        if not has_annotator and num_empty:
            return (
                f"{num_empty} rows have no `{column}`: asked for, they count as declined. With "
                '`annotator="queue"`, or another annotator, these are asked for, and the other labels count as yours'
            )
        return None

    def texts(self, rows: Sequence[int]) -> Iterator[str]:
        """The questions of some rows, for people."""
        dataset = self.dataset.with_format(None).select_columns(self.questions.columns)
        return map(self.questions.text, read_rows(dataset, rows))


def read_pool(
    trainer: Any, questions: Questions, label_column: str | None, free_columns: Sequence[str], has_annotator: bool
) -> TrainerPool:
    """
    Read the pool of a trainer and hide its labels.

    Raises:
        TypeError: if the dataset cannot be indexed.
        ValueError: if the pool, its columns or the evaluation data cannot be used.
    """
    dataset: Dataset = trainer.train_dataset
    if isinstance(dataset, Dataset) and "prompt" not in dataset.column_names:
        raise ValueError(
            f"The pool has no column 'prompt', where TRL reads the prompts, only {dataset.column_names}. Rename the "
            "one that holds them before the trainer is made: `dataset = dataset.rename_column(NAME, 'prompt')`."
        )
    questions.check(dataset)
    reward_funcs, names = trainer.reward_funcs, trainer.reward_func_names
    columns = find_columns(reward_funcs, names, dataset.features, label_column, free_columns, has_annotator)
    questions.check_labels(columns.label)  # before ids are made, whose errors quote values
    ids = questions.ids(dataset)
    verifier = find_verifier(reward_funcs, columns.label)
    sold = [columns.label] if columns.label in dataset.column_names else []
    vault = LabelVault(dataset, sold, ids, columns.locked)
    gives_away = None if "prompt" in free_columns else vault
    check_prompts(dataset.with_format(None)["prompt"], gives_away)
    if questions.question_column is not None:
        check_prompts(dataset.with_format(None)[questions.question_column], gives_away)
    check_form_of_prompts(reward_funcs, names, dataset, columns, trainer.state)
    pool = TrainerPool(dataset, questions, ids, columns, vault, verifier)
    if trainer.eval_dataset is not None:
        check_evaluation_data(trainer.eval_dataset, questions, pool.places)
    return pool
