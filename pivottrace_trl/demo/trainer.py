"""TRL's trainer without what a tiny model on a processor waits for; what it learns stays the same."""

from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import GRPOTrainer
from trl.rewards import accuracy_reward


@lru_cache(maxsize=2**16)
def _accuracy(text: str, solution: str) -> float | None:
    return accuracy_reward([[{"role": "assistant", "content": text}]], [solution])[0]


@wraps(accuracy_reward)
def cached_accuracy_reward(completions, solution, **kwargs):
    """TRL's `accuracy_reward`; a completion that was verified before is not verified again."""
    return [_accuracy(completion[0]["content"], label) for completion, label in zip(completions, solution, strict=True)]


class QuickEvaluationTrainer(GRPOTrainer):
    """
    `GRPOTrainer` whose evaluation answers prompts of like length together and leaves out the loss, which says nothing
    of an evaluation. Its random numbers are its own: the same in every arm, and none taken from training.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate under the trainer's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Answer and reward, nothing else."""
        self._prepare_inputs(inputs)
        return torch.zeros((), device=self.args.device), None, None

    def _get_eval_sampler(self, eval_dataset: Dataset) -> list[int]:
        # A batch is generated until its longest answer ends.
        order = np.argsort([-len(str(prompt)) for prompt in eval_dataset["prompt"]], kind="stable")
        return np.repeat(order, self.num_generations_eval).tolist()


def generate_merged(model: PeftModel) -> None:
    """
    Let `model.generate` run on weights into which the adapters are merged: token by token, the small products of LoRA
    take a quarter of the time. The weights are put back as they were, bit for bit.
    """
    generate = model.generate
    weights = [
        module.get_base_layer().weight.data for module in model.modules() if isinstance(module, BaseTunerLayer)
    ]

    def generate_and_restore(*args: Any, **kwargs: Any) -> Any:
        frozen = [weight.clone() for weight in weights]
        model.merge_adapter()
        try:
            return generate(*args, **kwargs)
        finally:
            model.unmerge_adapter()
            for weight, original in zip(weights, frozen, strict=True):
                weight.copy_(original)

    model.generate = generate_and_restore
