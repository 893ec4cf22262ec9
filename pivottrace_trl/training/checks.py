"""Checks whether a trainer can be attached to."""

from typing import Any, cast

from transformers import ProcessorMixin, TrainerCallback
from transformers.utils import logging
from trl import GRPOTrainer, RLOOTrainer

from ..tracing.layers import find_attention_modules
from .parallelism import check_parallelism
from .private_names import find_differences
from .rewards import RoutedReward
from .versions import TESTED, TRL_VERSIONS, installed, is_newer_than_tested


logger = logging.get_logger(__name__)


def check_trainer(trainer: GRPOTrainer | RLOOTrainer) -> None:
    """
    Check that a trainer can be attached to, before anything is changed.

    Raises:
        TypeError: if it is another kind of trainer.
        RuntimeError: if training has begun, a callback is attached already, or TRL changed something we rely on.
        NotImplementedError: if the set-up is not supported.
        ValueError: if the model has no attention that can be traced.
    """
    name = type(trainer).__name__
    # `import unsloth` replaces TRL's class by a generated copy, `UnslothGRPOTrainer`, even where this package imports
    # it from. Only the names in the inheritance chain show this.
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
            f"what PivotDensityCallback was tested with: {'; '.join(differences)}. Supported are trl {TRL_VERSIONS}, "
            f'tested up to {TESTED}: pip install "trl=={TESTED}". A method that a class of your own overrides must '
            "keep these parameters."
        )
    if is_newer_than_tested():
        logger.warning_once(
            f"trl {installed('trl')} is newer than {TESTED}, the newest that pivottrace-trl was tested with. Every "
            "private name that we use is there. `pivottrace doctor` checks in seconds that they do what we need."
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


def check_is_added(trainer: Any, callback: TrainerCallback) -> None:
    """Raise `RuntimeError` unless the callback is among the trainer's callbacks exactly once."""
    if trainer.callback_handler.callbacks.count(callback) != 1:
        raise RuntimeError(
            "The PivotDensityCallback was made for this trainer but is not among its callbacks exactly once. Add "
            "it with `trainer.add_callback(callback)`, or undo it with `callback.detach()`."
        )


def _refuse_multi_turn(trainer: GRPOTrainer) -> None:
    """Raise if rollouts are more than one response to the prompt. `RLOOTrainer` has no such options."""
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
