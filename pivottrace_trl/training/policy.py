"""The policy that a trainer trains, with the trainer's own generation engine, in every supported version of TRL."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from ..processes import SharedWork
from ..scoring.policy import fingerprint_policy
from ..tracing.rollout_pass import trace_rollouts
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from .private_names import has_parameter


_VLLM_BATCH_SIZE = 512
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length", "use_vllm")


class TrainerPolicy:
    """The policy of a trainer that passed [`check_trainer`], as a [`~scoring.survey.Policy`]."""

    def __init__(self, trainer: Any):
        self._trainer = trainer

    @property
    def batch_size(self) -> int:
        """
        Number of prompts per call of the generation engine in each process. It does not depend on the number of
        processes, so responses do not depend on it either. vLLM schedules by itself. Otherwise it is four times the
        batch of the loss, as the KV cache for that takes less memory than the logits and activations of the loss.
        """
        args = self._trainer.args
        return _VLLM_BATCH_SIZE if args.use_vllm else 4 * args.per_device_train_batch_size

    def tokenize(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of prompts, as the trainer tokenizes them."""
        return [list(ids) for ids in self._trainer._tokenize_prompts(list(prompts))[0]]

    def generate(self, prompt_ids: list[list[int]], number: int) -> list[list[int]]:
        """
        One response to each prompt from the trainer's own engine (transformers or vLLM). The random state of the
        process is restored, so that training draws the same numbers with and without a survey.
        """
        trainer = self._trainer
        was_training = trainer.model.training
        trainer.model.eval()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(trainer.args.seed + number)
                return _generate_once(trainer, prompt_ids)
        finally:
            trainer.model.train(was_training)

    def decode(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Text of each response."""
        ids = [rollout.completion_ids for rollout in rollouts]
        return self._trainer.processing_class.batch_decode(ids, skip_special_tokens=True)

    def trace(
        self, rollouts: Sequence[Rollout], signals: Collection[str], work: SharedWork, progress: bool
    ) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
        """Trace responses with the trainer's model, at its temperature and precision, see [`trace_rollouts`]."""
        return trace_rollouts(
            self._model,
            rollouts,
            self._trainer._tokenizer.pad_token_id,
            signals=signals,
            temperature=self.temperature,
            autocast=self._trainer.accelerator.autocast,
            progress=progress,
            work=work,
        )

    @property
    def temperature(self) -> float:
        """Temperature at which responses are sampled and entropies are computed."""
        return self._trainer.temperature

    @property
    def weights(self) -> str:
        """See [`fingerprint_policy`]."""
        return fingerprint_policy(self._model)

    def describe(self) -> dict[str, Any]:
        """How responses are drawn, as plain values."""
        args = self._trainer.args
        settings = {name: getattr(args, name) for name in _SAMPLING}
        more = {"seed": args.seed, "more": repr(args.generation_kwargs), "precision": str(self._model.dtype)}
        return settings | more

    @property
    def _model(self) -> Any:
        """The policy without its wrapper for training."""
        return self._trainer.accelerator.unwrap_model(self._trainer.model)


def _generate_once(trainer: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
    if has_parameter(trainer, "_generate_single_turn", "num_generations"):
        return _ids(trainer._generate_single_turn(prompt_ids, None, {}, 1))
    # RLOOTrainer, and GRPOTrainer up to 1.14.0, read the number of generations from the trainer, and give vLLM only
    # the first of each group of equal prompts.
    number = trainer.num_generations_eval
    trainer.num_generations_eval = 1
    try:
        return _ids(trainer._generate_single_turn(prompt_ids, None, {}))
    finally:
        trainer.num_generations_eval = number


def _ids(generated: Any) -> list[list[int]]:
    # GRPOTrainer also returns log-probabilities.
    return [list(ids) for ids in (generated[0] if isinstance(generated, tuple) else generated)]
