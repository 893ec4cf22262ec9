"""What can be attached to: set-ups, label columns, verifier."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn
from trl import GRPOTrainer

from ..layers import find_attention_modules
from ..rewards import RoutedReward
from ..versions import TRL_VERSIONS, installed


# Keyword arguments that GRPOTrainer itself passes to reward functions; every other name is a dataset column.
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
        "image",
        "images",
    }
)
# Columns that are locked up wherever they occur, since they give the answer away through `**kwargs`.
_USUAL_LABEL_COLUMNS = frozenset(
    {
        "answer",
        "answers",
        "solution",
        "label",
        "labels",
        "target",
        "ground_truth",
        "final_answer",
        "gold",
        "gold_answer",
        "reference",
        "reference_answer",
        "expected_answer",
    }
)
_PRIVATE_NAMES = (
    "_generate_and_score_completions",
    "_generate_single_turn",
    "_get_per_token_logps_and_entropies",
    "_get_train_sampler",
    "_tokenize_prompts",
    "_tokenizer",
)


def check_trainer(trainer: GRPOTrainer) -> None:
    """
    Refuse what cannot be attached to, before anything is changed.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer.

    Raises:
        TypeError: if it is no `GRPOTrainer`.
        RuntimeError: if training began, a callback is attached already, or TRL lacks a method we rely on.
        NotImplementedError: for set-ups that are not supported.
        ValueError: if the model has no attention that can be traced.
    """
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"`trainer` is a `{type(trainer).__name__}`, but must be a `trl.GRPOTrainer`.")
    if missing := [name for name in _PRIVATE_NAMES if not hasattr(trainer, name)]:
        raise RuntimeError(
            f"GRPOTrainer of trl {installed('trl')} has no {missing}, which PivotDensityCallback needs. Supported are "
            f"trl {TRL_VERSIONS}."
        )
    if any(isinstance(reward, RoutedReward) for reward in trainer.reward_funcs):
        raise RuntimeError(
            "A PivotDensityCallback is attached to this trainer already. Use that one, or call its `detach()` first."
        )
    if trainer.is_in_train or trainer.state.global_step > 0:
        raise RuntimeError(
            f"Training has begun (step {trainer.state.global_step}): labels may have been read. Make the "
            "PivotDensityCallback right after the trainer, before `trainer.train()`."
        )
    unsupported = {
        "several GPUs in one process": trainer.args.n_gpu > 1,
        "tools, environments or a `rollout_func`": bool(
            trainer.tools or trainer.environment_factories or trainer.rollout_func
        ),
        "vision-language models": trainer._is_vlm,
        "async reward functions": any(inspect.iscoroutinefunction(reward) for reward in trainer.reward_funcs),
        "`remove_unused_columns=True`, which keeps labels from reward functions": trainer.args.remove_unused_columns,
    }
    if found := [name for name, is_used in unsupported.items() if is_used]:
        raise NotImplementedError(f"PivotDensityCallback does not support {' nor '.join(found)} yet.")
    find_attention_modules(cast(Any, trainer.model))


def find_label_columns(
    reward_funcs: Sequence[Callable | nn.Module],
    column_names: Sequence[str],
    label_column: str | None,
    has_annotator: bool,
) -> tuple[str, list[str]]:
    """
    Tell which columns of the pool are labels.

    Args:
        reward_funcs (`Sequence`):
            Reward functions as given to the trainer.
        column_names (`Sequence[str]`):
            Columns of the pool.
        label_column (`str`, *optional*):
            The user's word.
        has_annotator (`bool`):
            Whether there is someone to ask besides the dataset.

    Returns:
        Tuple of the column under which the reward functions expect the answer and the columns to lock up: the label
        column where the pool has it, and every column with a usual name of labels.

    Raises:
        ValueError: if the label column is missing or ambiguous.
    """
    parameters = [
        parameter
        for reward in reward_funcs
        if not isinstance(reward, nn.Module)
        for parameter in inspect.signature(reward).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in _TRL_ARGUMENTS
    ]
    named = list(dict.fromkeys(parameter.name for parameter in parameters))
    if label_column is None:
        candidates = [name for name in named if name in column_names]
        if not candidates and has_annotator:
            candidates = list(dict.fromkeys(p.name for p in parameters if p.default is p.empty))
        if len(candidates) > 1:
            raise ValueError(
                f"The reward functions read several columns, {candidates}, so that it is ambiguous which is the "
                f"label. Name it: `label_column={candidates[0]!r}`."
            )
        if not candidates:
            raise ValueError(
                f"No label column found: the reward functions read {named or 'no column'}, the pool has "
                f"{list(column_names)}. Name the column with `label_column=`, or pass `annotator=`, a function from a "
                "list of rows to a list of answers."
            )
        (label_column,) = candidates
    elif label_column not in column_names and not has_annotator:
        raise ValueError(
            f"`label_column` is {label_column!r}, but the pool has only {list(column_names)}. Name one of them, or "
            "pass `annotator=`, a function from a list of rows to a list of answers."
        )
    hidden = [name for name in column_names if name == label_column or name in _USUAL_LABEL_COLUMNS]
    return label_column, hidden


def find_verifier(reward_funcs: Sequence[Callable | nn.Module], label_column: str) -> int:
    """
    Tell which reward function says whether a response is right.

    Args:
        reward_funcs (`Sequence`):
            Reward functions as given to the trainer.
        label_column (`str`):
            Column under which they expect the answer.

    Returns:
        `int`: position of the first that names the column, or of the only one there is (it may take the column
        through `**kwargs`).

    Raises:
        ValueError: if none names it and there are several.
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
