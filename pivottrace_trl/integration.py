"""Attach to a `GRPOTrainer` and detach again. The only module that touches TRL's private names."""

import inspect
import logging as python_logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from .rewards import ROW_COLUMN, RoutedReward
from .rollouts import Rollout, generate_rollouts
from .tracing import find_attention_modules
from .versions import TRL_VERSIONS, installed


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
_PRIVATE_NAMES = ("_get_train_sampler", "_tokenize_prompts", "_generate_single_turn", "_tokenizer")


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
        "several processes": trainer.accelerator.num_processes > 1,
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


class _WithheldRewardFilter(python_logging.Filter):
    """Drops TRL's warning about rows without a reward where the reward was withheld on purpose."""

    def __init__(self, has_withheld: Callable[[], bool]):
        super().__init__()
        self._has_withheld = has_withheld

    def filter(self, record: python_logging.LogRecord) -> bool:
        return not (self._has_withheld() and "All reward functions returned None" in str(record.msg))


class TrainerAttachment:
    """
    The changes made to one trainer, and their undoing.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            A trainer that passed [`check_trainer`].
        hidden_columns (`Sequence[str]`):
            Columns that leave the training data.
        prompt_ids (`Sequence[str]`):
            Id of each row of the training data.

    Attributes:
        resume_path (`str` or `None`): checkpoint from which the running `train()` resumes.
    """

    def __init__(self, trainer: GRPOTrainer, hidden_columns: Sequence[str], prompt_ids: Sequence[str]):
        # TRL annotates attributes more loosely than what a built trainer holds.
        self.trainer = cast(Any, trainer)
        self._dataset: Dataset = self.trainer.train_dataset
        self._row = {identity: row for row, identity in enumerate(prompt_ids)}
        self.reward_funcs: list[Any] = self.trainer.reward_funcs
        self.resume_path: str | None = None
        self._filter: python_logging.Filter | None = None
        blind = self._dataset.remove_columns(list(hidden_columns))
        self._blind_dataset = blind.add_column(ROW_COLUMN, list(range(len(blind))))

    def attach(
        self,
        reward_funcs: Sequence[Callable | nn.Module],
        make_sampler: Callable[[Dataset | None], torch.utils.data.Sampler],
        has_withheld: Callable[[], bool],
    ) -> None:
        """
        Put the blind dataset, the routed reward functions and the routed sampler in place.

        Args:
            reward_funcs (`Sequence`):
                Replacements of the reward functions, in their order.
            make_sampler (`Callable`):
                Replacement of the trainer's sampler factory.
            has_withheld (`Callable[[], bool]`):
                Whether the latest batch has rows whose reward was withheld on purpose.
        """
        trainer = self.trainer
        train = trainer.train

        def train_and_note_resume(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
            path = resume_from_checkpoint
            self.resume_path = get_last_checkpoint(trainer.args.output_dir) if path is True else path or None
            return train(resume_from_checkpoint, *args, **kwargs)

        trainer.train_dataset = self._blind_dataset
        trainer.reward_funcs = list(reward_funcs)
        # Instance attributes shadow the methods of the class; removing them brings the methods back.
        trainer._get_train_sampler = make_sampler
        trainer.train = train_and_note_resume
        self._filter = _WithheldRewardFilter(has_withheld)
        python_logging.getLogger("trl.trainer.grpo_trainer").addFilter(self._filter)

    def detach(self) -> None:
        """Undo [`attach`]."""
        self.trainer.train_dataset = self._dataset
        self.trainer.reward_funcs = self.reward_funcs
        del self.trainer._get_train_sampler, self.trainer.train
        if self._filter is not None:
            python_logging.getLogger("trl.trainer.grpo_trainer").removeFilter(self._filter)

    def rows(self, prompt_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the pool with the given ids, without label columns."""
        blind = self._blind_dataset.remove_columns(ROW_COLUMN)
        return [blind[self._row[identity]] for identity in prompt_ids]

    def tokenize(self, rows: Sequence[int]) -> list[list[int]]:
        """Token ids of the prompts of the given rows, as the trainer makes them."""
        # Ten thousand prompts at a time bound the memory of the messages.
        ids: list[list[int]] = []
        for start in range(0, len(rows), 10_000):
            prompts = self._blind_dataset.select(list(rows[start : start + 10_000]))["prompt"]
            ids += self.trainer._tokenize_prompts(list(prompts))[0]
        return [list(prompt) for prompt in ids]

    def generate(self, rows: Sequence[int]) -> list[Rollout]:
        """
        One response for each of the given rows, from the trainer's own generation engine (transformers or vLLM).

        The random state of the process is put back afterwards: with and without scoring, training draws the same
        numbers.
        """
        trainer = self.trainer

        def generate(prompt_ids: list[list[int]]) -> list[list[int]]:
            completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
            return [list(ids) for ids in completion_ids]

        was_training = trainer.model.training
        trainer.model.eval()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(trainer.args.seed)
                return generate_rollouts(generate, self.tokenize(rows), trainer.args.generation_batch_size)
        finally:
            trainer.model.train(was_training)

    def decode(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Text of each response."""
        ids = [rollout.completion_ids for rollout in rollouts]
        return self.trainer.processing_class.batch_decode(ids, skip_special_tokens=True)

    def reward(self, index: int, rows: Sequence[int], responses: Sequence[str], rollouts: Sequence[Rollout], labels):
        """
        Ask one of the user's reward functions about scored responses.

        Args:
            index (`int`): which reward function.
            rows (`Sequence[int]`): rows of the pool.
            responses (`Sequence[str]`): one response per row.
            rollouts (`Sequence[Rollout]`): their tokens.
            labels (`Sequence[dict[str, Any]]`): bought label of each row.

        Returns:
            `list[float | None]`: one reward per row.
        """
        examples = self._blind_dataset.remove_columns(ROW_COLUMN).select(list(rows))
        prompts = list(examples["prompt"])
        columns = {name: list(examples[name]) for name in examples.column_names if name != "prompt"}
        columns |= {name: [label.get(name) for label in labels] for name in labels[0]}
        return self.reward_funcs[index](
            prompts=prompts,
            completions=[
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, responses, strict=True)
            ],
            completion_ids=[rollout.completion_ids for rollout in rollouts],
            trainer_state=self.trainer.state,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **columns,
        )
