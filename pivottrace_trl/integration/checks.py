"""What can be attached to: set-ups, label columns, verifier."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn
from transformers import ProcessorMixin
from trl import GRPOTrainer, RLOOTrainer

from ..layers import find_attention_modules
from ..rewards import RoutedReward
from ..versions import TRL_VERSIONS, installed
from .parallelism import check_parallelism
from .private_names import find_differences


# Keyword arguments that the trainer itself passes to reward functions; every other name is a dataset column.
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


def check_trainer(trainer: GRPOTrainer | RLOOTrainer) -> None:
    """
    Refuse what cannot be attached to, before anything is changed.

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer.

    Raises:
        TypeError: if it is neither a `GRPOTrainer` nor an `RLOOTrainer`.
        RuntimeError: if training began, a callback is attached already, or TRL changed something we rely on.
        NotImplementedError: for set-ups that are not supported.
        ValueError: if the model has no attention that can be traced.
    """
    name = type(trainer).__name__
    # `import unsloth` puts a generated copy of the class, `UnslothGRPOTrainer`, in the place of TRL's own, also where
    # this package imports it from: only the names in the line of descent tell.
    if any("Unsloth" in ancestor.__name__ for ancestor in type(trainer).__mro__):
        raise NotImplementedError(
            f"`trainer` is a `{name}`, which Unsloth put in the place of TRL's own class: it computes the loss with "
            "kernels of its own, past the attention and the methods that are traced. Run `pivottrace triage` without "
            "Unsloth and train on the annotated prompts with it, or do not import `unsloth` in this process."
        )
    if not isinstance(trainer, (GRPOTrainer, RLOOTrainer)):
        raise TypeError(f"`trainer` is a `{name}`, but must be a `trl.GRPOTrainer` or a `trl.RLOOTrainer`.")
    if differences := find_differences(trainer):
        raise RuntimeError(
            f"{name} of trl {installed('trl')} with transformers {installed('transformers')} is not "
            f"what PivotDensityCallback was tested with: {'; '.join(differences)}. Supported are trl {TRL_VERSIONS}: "
            f'pip install "trl{TRL_VERSIONS}". A method that a class of your own overrides must keep these parameters.'
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
    if isinstance(trainer, GRPOTrainer):
        _refuse_multi_turn(trainer)
    _refuse_set_up(trainer)
    check_parallelism(trainer)
    find_attention_modules(cast(Any, trainer.model))


def _refuse_multi_turn(trainer: GRPOTrainer) -> None:
    """What makes a rollout more than one response to the prompt; `RLOOTrainer` has none of it."""
    if trainer.environment_factories:
        raise NotImplementedError(
            "PivotDensityCallback does not support `environment_factory`: an environment decides by itself what the "
            "prompt, the turns and often the reward are, so that there is no pool of prompts whose labels could be "
            "bought. Train without the callback, or put a single-turn version of the tasks into `train_dataset`."
        )
    if trainer.tools:
        raise NotImplementedError(
            f"PivotDensityCallback does not support `tools` (here {len(trainer.tools)}): the pool is ranked by single "
            "responses in which no tool is called, which say little of a policy that calls them. Leave `tools` out, "
            "or rank the pool with `pivottrace triage` and train on the annotated prompts without the callback."
        )
    if trainer.rollout_func:
        raise NotImplementedError(
            "PivotDensityCallback does not support `rollout_func`: the pool is ranked by responses from the trainer's "
            "own generation, which your function replaces. Leave `rollout_func` out (with `use_vllm=True` the trainer "
            "generates with vLLM itself), or rank the pool with `pivottrace triage` and train without the callback."
        )


def _refuse_set_up(trainer: Any) -> None:
    if isinstance(trainer.processing_class, ProcessorMixin):
        raise NotImplementedError(
            "PivotDensityCallback does not support vision-language models: responses are traced without images, and "
            "their scores would not be those of the policy. If the prompts are text only, pass "
            "`processing_class=processor.tokenizer` with a text model; else train without the callback."
        )
    if trainer.args.n_gpu > 1:
        raise NotImplementedError(
            f"PivotDensityCallback does not support several GPUs in one process (here {trainer.args.n_gpu}). Make one "
            "visible with `CUDA_VISIBLE_DEVICES`."
        )
    if trainer.args.remove_unused_columns:
        raise NotImplementedError(
            "PivotDensityCallback does not support `remove_unused_columns=True`, which keeps labels from reward "
            "functions. Leave it at its default, `False`."
        )


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
