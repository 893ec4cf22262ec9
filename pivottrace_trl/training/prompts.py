"""Checks of prompts: no labels in them, none of the pool in evaluation, and the form that reward functions read."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset, LargeList, List, Value
from torch import nn
from trl.trainer.utils import is_async_callable

from ..labels.vault import LabelVault
from ..pool import Questions, read_rows
from .columns import PoolColumns, required_parameters


# Fields that chat templates read, of a message and of a part of its content.
_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"})
_PART_KEYS = frozenset({"type", "text"})
# Largest number of rows that an error lists.
_NUM_LISTED = 10


def check_prompts(prompts: Sequence[Any], vault: LabelVault | None) -> None:
    """
    Check that prompts do not reveal their label, as the policy and reward functions would see it without a purchase.

    Raises:
        ValueError: if a prompt holds its label as an answer, see [`gives_away`] (not checked without a vault, as the
            user allowed it), or a message has more fields than chat templates read.
    """
    for row, prompt in enumerate(prompts):
        for message in [] if isinstance(prompt, str) else prompt:
            content = message["content"]
            parts = [] if isinstance(content, str) else content or []
            others = _others(message, _MESSAGE_KEYS) + [key for part in parts for key in _others(part, _PART_KEYS)]
            if others:
                raise ValueError(
                    f"Row {row} of the pool has a message with the fields {others}, which no chat template reads, but "
                    f"every reward function would see. Keep {sorted(_MESSAGE_KEYS)} with `dataset.map`, and move "
                    "what else is needed into columns."
                )
    if vault is not None and (rows := vault.find_given_away(prompts)):
        raise ValueError(
            f"{len(rows)} of {len(prompts)} prompts hold their own label as an answer: rows {_listed(rows)}. The "
            "policy and the reward functions would see it without a purchase. Take it out of these prompts, or drop "
            "the rows with `dataset.filter`. If it stands there without being told, as the text of one choice among "
            'others does, pass `free_columns=["prompt"]`. What counts as an answer is said in docs/how_it_works.md.'
        )


def check_evaluation_data(eval_dataset: Any, questions: Questions, places: dict[str, int]) -> None:
    """
    Raise `ValueError` if an evaluation set, or one of several, shares questions with the pool, see
    [`check_not_in_pool`]. Streamed sets are checked batch by batch during the evaluation.
    """
    sets = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    for key, dataset in sets.items():
        name = "`eval_dataset`" if key is None else f"`eval_dataset[{key!r}]`"
        if isinstance(dataset, Dataset) and "prompt" in dataset.column_names:
            names = [column for column in questions.columns if column in dataset.column_names]
            rows = dataset.with_format(None).select_columns(names)
            check_not_in_pool(name, read_rows(rows, range(len(rows))), questions, places)


def check_not_in_pool(name: str, rows: Iterable[dict[str, Any]], questions: Questions, places: dict[str, int]) -> None:
    """
    Raise `ValueError` if rows of an evaluation set have questions of the pool. `name` describes the set, and `places`
    maps every question of the pool to its row.
    """
    found = ([places[key] for key in keys if key in places] for keys in questions.asked_in(rows))
    shared = [(place, rows_of_pool[0]) for place, rows_of_pool in enumerate(found) if rows_of_pool]
    if shared:
        mine, theirs = (_listed(list(dict.fromkeys(numbers))) for numbers in zip(*shared, strict=True))
        raise ValueError(
            f"{name} shares {len(shared)} prompts with the pool: its rows {mine} are rows {theirs} of the pool. "
            "Evaluation would show their labels to the reward functions without a purchase. Take them out: `from "
            "pivottrace_trl import drop_duplicates; eval_dataset = drop_duplicates(eval_dataset, seen_in=dataset"
            f"{questions.arguments()})`."
        )


def check_form_of_prompts(
    reward_funcs: Sequence[Callable | nn.Module],
    names: Sequence[str],
    dataset: Dataset,
    columns: PoolColumns,
    trainer_state: Any,
) -> None:
    """
    Raise `ValueError` if prompts are plain text, but a reward function reads conversations. For plain-text prompts,
    each function that is not `async` is called once or twice, with a made-up completion and label.
    """
    first = dataset.with_format(None).select_columns(["prompt", *columns.free])[0]
    if not isinstance(first["prompt"], str):
        return
    label = _made_up_label(dataset.features.get(columns.label))

    def works(reward_func: Callable, completion: Any) -> bool:
        arguments = {name: [value] for name, value in first.items() if name != "prompt"} | {columns.label: [label]}
        try:
            reward_func(
                prompts=[first["prompt"]],
                completions=[completion],
                completion_ids=[[0]],
                trainer_state=trainer_state,
                log_extra=lambda column, values: None,
                log_metric=lambda name, value: None,
                **arguments,
            )
        except Exception:
            return False
        return True

    for reward_func, name in zip(reward_funcs, names, strict=True):
        if isinstance(reward_func, nn.Module) or is_async_callable(reward_func):
            continue
        if required_parameters(reward_func) & set(columns.locked) or works(reward_func, "0"):
            continue
        if works(reward_func, [{"role": "assistant", "content": "0"}]):
            raise ValueError(
                "The prompts of the pool are plain texts, so completions are texts as well, but the reward "
                f"function `{name}` reads conversations. Make the prompts conversations: `dataset.map(lambda row: "
                "{'prompt': [{'role': 'user', 'content': row['prompt']}]})`, or let the function read texts."
            )


def _made_up_label(feature: Any) -> Any:
    if isinstance(feature, List | LargeList):
        return [_made_up_label(feature.feature)]
    is_text = not isinstance(feature, Value) or "string" in feature.dtype
    return "0" if is_text else 0


def _others(fields: dict[str, Any], known: frozenset[str]) -> list[str]:
    return [key for key, value in fields.items() if value is not None and key not in known]


def _listed(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _NUM_LISTED} more" if len(rows) > _NUM_LISTED else ""
    return ", ".join(str(row) for row in rows[:_NUM_LISTED]) + more
