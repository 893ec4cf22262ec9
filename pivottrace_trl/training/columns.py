"""Finds the columns of a pool that reward functions may see, and the function that verifies."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from datasets import ClassLabel, LargeList, List, Value
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Keyword arguments that the trainer itself passes to reward functions. A column with such a name never reaches them.
_TRL_ARGUMENTS = frozenset(
    {
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environments",
        "prompt",
        "completion",
    }
)
# Columns that are inputs of the policy, even if a reward function names them.
_INPUTS = frozenset({"image", "images"})
# Types of a label column that the ledger can store and a majority answer can have, by the beginning of their names.
_LABEL_TYPES = ("string", "large_string", "int", "uint", "float", "bool", "null")


@dataclass(frozen=True)
class PoolColumns:
    """
    The roles of a pool's columns; `prompt` always stays. The reward functions expect the answer under `label`, which
    the pool need not have. `free` columns stay in the training data, as the user declared. All other columns are
    `locked`: they are removed with the label, and returned only with a bought one.
    """

    label: str
    free: tuple[str, ...]
    locked: tuple[str, ...]


def find_columns(
    reward_funcs: Sequence[Callable | nn.Module],
    reward_names: Sequence[str],
    features: dict[str, Any],
    label_column: str | None,
    free_columns: Sequence[str],
    has_annotator: bool,
) -> PoolColumns:
    """
    Find the roles of a pool's columns, and warn of locked columns that reward functions read.

    Raises:
        ValueError: if the label column is missing, ambiguous or of an unsupported type; if a free column is missing;
            or if a reward function requires a column that would never be shown.
    """
    free = _check_free(free_columns, features)
    label = _find_label(reward_funcs, list(features), label_column, free, has_annotator)
    if label in free:
        raise ValueError(
            f"`free_columns` names the label column `{label}`, which would be shown to the reward functions without a "
            "purchase. Leave it out."
        )
    if label in features and not _is_label_type(features[label]):
        raise ValueError(
            f"The label column `{label}` holds values of the type {features[label]!r:.200}, which a majority answer "
            "cannot have. A label is a text, a number, or a list of them: take it out, as in "
            "`dataset.map(lambda row: {'answer': row['reward_model']['ground_truth']})`."
        )
    kept = {"prompt", label, *free} | _TRL_ARGUMENTS
    columns = PoolColumns(label, free, tuple(name for name in features if name not in kept))
    _warn_of_locked(reward_funcs, reward_names, columns, has_annotator)
    return columns


def required_parameters(reward_func: Callable | nn.Module) -> set[str]:
    """Columns that a reward function requires. A reward model requires none."""
    return {p.name for p in _column_parameters(reward_func) if p.default is p.empty}


def _column_parameters(reward_func: Callable | nn.Module) -> list[inspect.Parameter]:
    if isinstance(reward_func, nn.Module):
        return []
    return [
        parameter
        for parameter in inspect.signature(reward_func).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in _TRL_ARGUMENTS
    ]


def _check_free(free_columns: Sequence[str], column_names: dict[str, Any]) -> tuple[str, ...]:
    if isinstance(free_columns, str) or any(name not in column_names for name in free_columns):
        raise ValueError(
            f"`free_columns` is {free_columns!r}, but must be a list of columns of the pool, which has "
            f"{list(column_names)}."
        )
    return tuple(dict.fromkeys(name for name in free_columns if name != "prompt"))


def _find_label(
    reward_funcs: Sequence[Callable | nn.Module],
    column_names: list[str],
    label_column: str | None,
    free: Sequence[str],
    has_annotator: bool,
) -> str:
    if label_column is not None:
        if label_column not in column_names and not has_annotator:
            raise ValueError(
                f"`label_column` is {label_column!r}, but the pool has only {column_names}. Name one of them, or pass "
                '`annotator="queue"` to let people answer, or a function from a list of rows to a list of answers.'
            )
        return label_column
    parameters = [p for reward in reward_funcs for p in _column_parameters(reward) if p.name not in {*free} | _INPUTS]
    named = list(dict.fromkeys(parameter.name for parameter in parameters))
    candidates = [name for name in named if name in column_names]
    if not candidates and has_annotator:
        candidates = list(dict.fromkeys(p.name for p in parameters if p.default is p.empty))
    if len(candidates) > 1:
        raise ValueError(
            f"The reward functions read several columns, {candidates}, so that it is ambiguous which is the "
            f"label. Name it: `label_column={candidates[0]!r}`, and those that tell nothing of the answer in "
            "`free_columns=`; the others are locked up with the label."
        )
    if not candidates:
        raise ValueError(
            f"No label column found: the reward functions read {named or 'no column'}, the pool has "
            f"{column_names}. Name the column with `label_column=`. If there are no labels, pass "
            '`annotator="queue"` to let people answer, or a function from a list of rows to a list of answers.'
        )
    return candidates[0]


def _is_label_type(feature: Any) -> bool:
    if isinstance(feature, List | LargeList):
        return _is_label_type(feature.feature)
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(_LABEL_TYPES))


def _warn_of_locked(
    reward_funcs: Sequence[Callable | nn.Module], names: Sequence[str], columns: PoolColumns, has_annotator: bool
) -> None:
    """Warn of locked columns that reward functions read, or raise if they require one that is never shown."""
    readers: dict[str, list[str]] = {}
    never: dict[str, list[str]] = {}
    for reward, name in zip(reward_funcs, names, strict=True):
        for parameter in _column_parameters(reward):
            if parameter.name in columns.locked:
                readers.setdefault(parameter.name, []).append(name)
                if has_annotator and parameter.default is parameter.empty:
                    never.setdefault(parameter.name, []).append(name)

    def listed(found: dict[str, list[str]]) -> str:
        return ", ".join(f"`{column}` ({', '.join(functions)})" for column, functions in found.items())

    if never:
        raise ValueError(
            f"The reward functions require columns that are never shown: {listed(never)}. Labels come from "
            "`annotator=`, and whatever else the pool has is locked up, as it may tell the answer. Declare what tells "
            f"nothing of it: `free_columns={list(never)}`, or give these parameters a default."
        )
    if readers:
        logger.warning(
            f"The reward functions read columns that are locked up, as they may tell the label: {listed(readers)}. "
            "They are shown together with a bought label only. In other groups they are `None`, and a function that "
            "requires one of them is not asked. Declare those that tell nothing of the label: "
            f"`free_columns={list(readers)}`."
        )


def find_verifier(reward_funcs: Sequence[Callable | nn.Module], label_column: str) -> int:
    """
    Index of the reward function that decides whether a response is right: the first that names the label column, or
    the only function (which may take the column through `**kwargs`).

    Raises:
        ValueError: if none of several reward functions names the label column.
    """
    functions = [i for i, reward in enumerate(reward_funcs) if not isinstance(reward, nn.Module)]
    naming = [i for i in functions if label_column in inspect.signature(cast(Any, reward_funcs[i])).parameters]
    if naming:
        return naming[0]
    if len(functions) == 1:
        return functions[0]
    raise ValueError(
        f"None of the {len(reward_funcs)} reward functions names the label column `{label_column}` in its signature, "
        "so that it is unclear which one verifies a response. Name the column as a parameter of the one that does."
    )
