"""Prompts to responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .progress import progress_bar


@dataclass(frozen=True)
class Rollout:
    """
    One sampled response.

    Attributes:
        prompt_ids (`list[int]`): tokens of the prompt, as the model read them.
        completion_ids (`list[int]`): tokens of the response, up to and including the end-of-sequence token.
    """

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def is_empty(self) -> bool:
        """Whether the response holds nothing, or nothing but the end-of-sequence token."""
        return len(self.completion_ids) <= 1


def generate_rollouts(
    generate: Callable[[list[list[int]]], list[list[int]]],
    prompt_ids: Sequence[list[int]],
    batch_size: int,
    progress: bool = True,
) -> list[Rollout]:
    """
    Generate one response per prompt, in batches of prompts of similar length.

    Args:
        generate (`Callable[[list[list[int]]], list[list[int]]]`):
            Takes the token ids of a batch of prompts and returns the token ids of one response each.
        prompt_ids (`Sequence[list[int]]`):
            Token ids of every prompt.
        batch_size (`int`):
            Number of prompts generated at a time.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[Rollout]`: one per prompt, in the order of `prompt_ids`.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), reverse=True)
    rollouts: dict[int, Rollout] = {}
    with progress_bar("Generating responses", len(order), progress) as advance:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            completions = generate([prompt_ids[i] for i in batch])
            if len(completions) != len(batch):
                raise RuntimeError(f"The generator returned {len(completions)} responses for {len(batch)} prompts.")
            for i, completion in zip(batch, completions, strict=True):
                rollouts[i] = Rollout(list(prompt_ids[i]), list(completion))
            advance(len(batch))
    return [rollouts[i] for i in range(len(order))]


def transformers_generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig
) -> Callable[[list[list[int]]], list[list[int]]]:
    """
    Make a function for [`generate_rollouts`] out of `model.generate`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, for the padding token.
        generation_config ([`~transformers.GenerationConfig`]):
            How to generate. What it leaves open are the library's defaults, not the settings that the model ships.

    Returns:
        `Callable[[list[list[int]]], list[list[int]]]`: batch of prompt ids to batch of response ids.
    """
    end_ids = generation_config.eos_token_id
    end_ids = {end_ids} if isinstance(end_ids, int) else set(end_ids or ())
    owner: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": prompts}, padding=True, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)
        # `generate` fills what a configuration leaves open, such as a repetition penalty, from the model's own.
        shipped = owner.generation_config
        owner.generation_config = generation_config
        try:
            with torch.no_grad():
                output = cast(Any, model).generate(**batch, generation_config=generation_config)
        finally:
            owner.generation_config = shipped
        return [_up_to_end(row, end_ids) for row in output[:, batch["input_ids"].shape[1] :].tolist()]

    return generate


def _up_to_end(ids: list[int], end_ids: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids
