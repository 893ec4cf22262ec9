"""The pool of a trainer as it is read once, when a callback is made: ids, columns, labels put away, checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset

from ..labels.vault import LabelVault
from ..pool import pool_ids, prompt_text, question_id, read_rows
from .columns import PoolColumns, find_columns, find_verifier
from .prompts import check_evaluation_data, check_form_of_prompts, check_prompts


@dataclass(frozen=True)
class TrainerPool:
    """
    The pool of a trainer, whose `dataset` stays as it is. The `vault` holds what the prompts do not tell; the reward
    function `verifier` says whether a response is right.
    """

    dataset: Dataset
    ids: list[str]
    columns: PoolColumns
    vault: LabelVault
    verifier: int

    def texts(self, rows: Sequence[int]) -> Iterator[str]:
        """The questions of some rows, for people."""
        prompts = self.dataset.with_format(None).select_columns("prompt")
        return (prompt_text(row["prompt"]) for row in read_rows(prompts, rows))

    @cached_property
    def questions(self) -> dict[str, int]:
        """Row of every question of the pool, see [`question_id`]."""
        prompts = self.dataset.with_format(None)["prompt"]
        return {question_id(prompt): row for row, prompt in enumerate(prompts)}


def read_pool(trainer: Any, label_column: str | None, free_columns: Sequence[str], has_annotator: bool) -> TrainerPool:
    """
    Read the pool of a trainer and put its labels away. `TypeError` or `ValueError` for a pool, columns or evaluation
    data that cannot be used.
    """
    dataset: Dataset = trainer.train_dataset
    ids = pool_ids(dataset)
    reward_funcs, names = trainer.reward_funcs, trainer.reward_func_names
    columns = find_columns(reward_funcs, names, dataset.features, label_column, free_columns, has_annotator)
    verifier = find_verifier(reward_funcs, columns.label)
    sold = [columns.label] if columns.label in dataset.column_names else []
    vault = LabelVault(dataset, sold, ids, columns.locked)
    check_prompts(dataset.with_format(None)["prompt"], None if "prompt" in free_columns else vault)
    check_form_of_prompts(reward_funcs, names, dataset, columns, trainer.state)
    pool = TrainerPool(dataset, ids, columns, vault, verifier)
    if trainer.eval_dataset is not None:
        check_evaluation_data(trainer.eval_dataset, pool.questions)
    return pool
