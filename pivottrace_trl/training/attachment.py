"""Attaches to a `GRPOTrainer` or an `RLOOTrainer`, and detaches again."""

import asyncio
import inspect
import logging as python_logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import nn
from transformers.integrations import TrackioCallback, WandbCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import is_async_callable

from ..files import replace_atomically
from ..pool import read_rows
from ..processes import Processes
from ..tracing.response_tracer import ResponseTracer
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from .batch_labels import TABLE_COLUMNS, LabelRouter
from .checkpoint import find_checkpoint
from .columns import required_parameters
from .prompts import check_not_in_pool
from .rewards import ROW_COLUMN, AsyncRoutedReward, RoutedReward
from .trainer_pool import TrainerPool
from .training_pass import TracedTrainingPass


class _WithheldRewardFilter(python_logging.Filter):
    """Drops TRL's warning about rows without a reward when the reward was withheld on purpose."""

    def __init__(self, has_withheld: Callable[[], bool]):
        super().__init__()
        self._has_withheld = has_withheld

    def filter(self, record: python_logging.LogRecord) -> bool:
        return not (self._has_withheld() and "All reward functions returned None" in str(record.msg))


class TrainerAttachment:
    """
    Makes the changes to a trainer that passed [`check_trainer`], and undoes them.

    Attributes:
        resume_path (`Path` or `None`): checkpoint from which the current `train()` resumes.
    """

    def __init__(
        self,
        trainer: GRPOTrainer | RLOOTrainer,
        pool: TrainerPool,
        processes: Processes | None = None,
    ):
        self._processes = processes or Processes()
        # TRL annotates attributes more loosely than what a built trainer holds.
        self.trainer = cast(Any, trainer)
        self._pool = pool
        self.reward_funcs: list[Any] = self.trainer.reward_funcs
        self.resume_path: Path | None = None
        self._filter: python_logging.Filter | None = None
        self._training_pass: TracedTrainingPass | None = None
        self._is_training = False
        self._taken: set[str] = set()  # columns of the completions table that reward functions fill
        self._locked = pool.columns.locked
        blind = pool.dataset.with_format(None).select_columns(["prompt", *pool.columns.free])
        self._blind_dataset = blind.add_column(ROW_COLUMN, list(range(len(blind))))

    def attach(
        self,
        label_router: LabelRouter,
        verifier: int,
        make_sampler: Callable[[Dataset | None], torch.utils.data.Sampler],
        make_tracer: Callable[[nn.Module], ResponseTracer],
        on_traces: Callable[[list[int], list[ResponseTrace]], None],
        before_save: Callable[[Path], None],
        amend_card: Callable[[str], str],
    ) -> None:
        """
        Install the dataset without labels, the routed reward functions and the routed sampler.

        The reward function `verifier` decides whether a response is right. During training, `on_traces` is called with
        rows of the pool and the trace of one rollout for each. In every process, `before_save` is called with the
        folder of a checkpoint that is about to be saved. `amend_card` gets a model card by TRL and returns it amended.
        """
        trainer = self.trainer
        train, save_checkpoint = trainer.train, trainer._save_checkpoint
        calculate_rewards, create_model_card = trainer._calculate_rewards, trainer.create_model_card

        def needs_locked(reward_func: Callable | nn.Module) -> bool:
            return bool(required_parameters(reward_func) & set(self._locked))

        # If votes cannot be verified, no other function may reward them.
        label_router.has_pseudo_labels = not needs_locked(self.reward_funcs[verifier])

        def route(index: int, reward_func: Callable | nn.Module) -> Callable | nn.Module:
            if isinstance(reward_func, nn.Module):
                return reward_func
            kind = AsyncRoutedReward if is_async_callable(reward_func) else RoutedReward
            return kind(reward_func, label_router, index == verifier, needs_locked(reward_func))

        def calculate_rewards_of_labelled(inputs: list[dict[str, Any]], prompts: list, completions: list, *args: Any):
            if ROW_COLUMN not in inputs[0]:
                self._check_foreign(inputs)
                label_router.num_withheld = 0
                rewards = calculate_rewards(inputs, prompts, completions, *args)
                self._log_table(dict.fromkeys(TABLE_COLUMNS, [None] * len(completions)))
                return rewards
            # The vote comes before any reward function: TRL runs the async ones side by side in another thread.
            rows = [example[ROW_COLUMN] for example in inputs]
            batch = label_router.resolve(rows, completions, trainer._log_metric)
            rewards = calculate_rewards(inputs, prompts, completions, *args)
            if trainer.log_completions:
                self._log_table(label_router.table(batch))
            # A reward model sees no rows. Without a label, it must not drive the policy alone.
            is_withheld = torch.tensor([label is None for label in batch.labels], device=rewards.device)
            rewards[gather(is_withheld)] = torch.nan
            return rewards

        def train_and_note_resume(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
            # One process decides, as the others may see the folder a moment later.
            self.resume_path = self._processes.on_main(
                lambda: find_checkpoint(Path(trainer.args.output_dir), resume_from_checkpoint)
            )
            path = None if self.resume_path is None else str(self.resume_path)
            self._is_training = True
            try:
                return train(path, *args, **kwargs)
            finally:
                self._is_training = False

        def save_state_and_checkpoint(model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
            # Before the trainer saves and deletes older checkpoints, so that one is always complete.
            before_save(Path(trainer._get_output_dir(trial=trial)) / folder)
            save_checkpoint(model, trial, *args, **kwargs)

        def create_amended_model_card(
            model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
        ) -> None:
            tags = [tags] if isinstance(tags, str) else tags or []
            create_model_card(model_name, dataset_name, [*tags, "pivottrace"])
            if trainer.is_world_process_zero():
                path = Path(trainer.args.output_dir) / "README.md"
                card = amend_card(path.read_text("utf-8"))
                replace_atomically(path, lambda temporary: temporary.write_text(card, "utf-8"))

        trainer.train_dataset = self._blind_dataset
        trainer.reward_funcs = [route(*entry) for entry in enumerate(self.reward_funcs)]
        # Instance attributes shadow the methods of the class; removing them brings the methods back.
        trainer._get_train_sampler = make_sampler
        trainer.train = train_and_note_resume
        trainer._save_checkpoint = save_state_and_checkpoint
        trainer._calculate_rewards = calculate_rewards_of_labelled
        trainer.create_model_card = create_amended_model_card
        self._training_pass = TracedTrainingPass(trainer, make_tracer, on_traces)
        self._training_pass.attach()
        self._filter = _WithheldRewardFilter(lambda: label_router.num_withheld > 0)
        self._logger.addFilter(self._filter)

    def detach(self) -> None:
        """
        Undo [`attach`].

        Raises:
            RuntimeError: while training runs.
        """
        if self._is_training:
            raise RuntimeError(
                "`detach()` was called while training runs: its batches have no labels for the original reward "
                "functions to read. Call it when `train()` has returned; `control.should_training_stop = True` "
                "ends it."
            )
        self.trainer.train_dataset = self._pool.dataset
        self.trainer.reward_funcs = self.reward_funcs
        del self.trainer._get_train_sampler, self.trainer.train, self.trainer._save_checkpoint
        del self.trainer._calculate_rewards, self.trainer.create_model_card
        if self._training_pass is not None:
            self._training_pass.detach()
        if self._filter is not None:
            self._logger.removeFilter(self._filter)

    def _log_table(self, columns: dict[str, list[Any]]) -> None:
        """Put columns into the trainer's completions table, which needs a value for each completion of each batch."""
        trainer = self.trainer
        if trainer.log_completions:
            # What a reward function shows under the same name, or is called, stays.
            self._taken.update(trainer._pending_extra_logs, trainer.reward_func_names)
            for name in columns.keys() - self._taken:
                trainer._log_completion_extra(name, columns[name])

    def _check_foreign(self, inputs: list[dict[str, Any]]) -> None:
        """Raise if a batch without row numbers is used for training, or holds prompts of the pool."""
        if self.trainer.model.training:
            raise RuntimeError(
                "A batch of training does not come from the pool: `train_dataset` was replaced after the "
                "PivotDensityCallback was made. Call `callback.detach()`, set the dataset, and make a new callback."
            )
        check_not_in_pool("The evaluation batch", inputs, self._pool.questions, self._pool.places)

    @property
    def _logger(self) -> python_logging.Logger:
        """The logger that TRL uses to warn of rows without a reward."""
        kind = "rloo" if isinstance(self.trainer, RLOOTrainer) else "grpo"
        return python_logging.getLogger(f"trl.trainer.{kind}_trainer")

    def rows(self, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """What an oracle may see of the given rows: prompt and free columns."""
        return read_rows(self._blind_dataset.remove_columns(ROW_COLUMN), rows)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of the pool."""
        return self._blind_dataset["prompt"]

    def start_trackers(self) -> None:
        """
        Start the trackers that accept nothing before they are started. The trainer starts them after it has built the
        data loader. The pool is answered earlier, and TRL and the user's reward functions may log during that time.
        """
        trainer = self.trainer
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, (TrackioCallback, WandbCallback)):
                callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)

    def reward(self, index: int, rows: Sequence[int], responses: Sequence[str], rollouts: Sequence[Rollout], labels):
        """
        Call one of the user's reward functions on scored responses.

        Args:
            index (`int`): index of the reward function.
            rows (`Sequence[int]`): rows of the pool.
            responses (`Sequence[str]`): one response per row.
            rollouts (`Sequence[Rollout]`): tokens of the responses.
            labels (`Sequence[dict[str, Any]]`): bought label of each row, with its locked columns.

        Returns:
            `list[float | None]`: one reward per row.
        """
        examples = self._blind_dataset.remove_columns(ROW_COLUMN).select(list(rows))
        prompts = list(examples["prompt"])
        columns = {name: list(examples[name]) for name in examples.column_names if name != "prompt"}
        columns |= {name: [label.get(name) for label in labels] for name in labels[0]}
        rewards = self.reward_funcs[index](
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
        if inspect.iscoroutine(rewards):
            # On the trainer's event loop, since clients are bound to the loop on which they were first used.
            rewards = asyncio.run_coroutine_threadsafe(rewards, self.trainer.async_loop).result()
        return rewards
