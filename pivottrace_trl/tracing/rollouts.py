"""Prompts to responses."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..processes import SharedWork
from ..progress import progress_bar


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
    seed: int | None = None,
    work: SharedWork | None = None,
) -> list[Rollout]:
    """
    Generate one response per prompt, in batches of prompts of similar length.

    Args:
        generate (`Callable[[list[list[int]]], list[list[int]]]`):
            Takes the token ids of a batch of prompts and returns the token ids of one response each.
        prompt_ids (`Sequence[list[int]]`):
            Token ids of every prompt.
        batch_size (`int`):
            Number of prompts generated at a time, at most.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        seed (`int`, *optional*):
            Seeds every batch on its own, so that a response depends neither on what was generated before nor on the
            number of processes; the random state of the process is put back. By default it runs on.
        work ([`SharedWork`], *optional*):
            Spreads the batches over processes and keeps what is finished. Defaults to this process alone.

    Returns:
        `list[Rollout]`: one per prompt, in the order of `prompt_ids`.
    """
    if not prompt_ids:
        return []
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), reverse=True)
    # As many batches as needed, as even as can be.
    size = math.ceil(len(order) / math.ceil(len(order) / batch_size))
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def make(number: int) -> list[list[int]]:
        batch = batches[number]
        # Generation engines that serve several processes expect batches of one size from all of them.
        prompts = [prompt_ids[i] for i in batch + batch[-1:] * (size - len(batch))]
        with torch.random.fork_rng() if seed is not None else nullcontext():
            if seed is not None:
                torch.manual_seed(seed + number)
            completions = generate(prompts)
        if len(completions) != len(prompts):
            raise RuntimeError(f"The generator returned {len(completions)} responses for {len(prompts)} prompts.")
        return [list(completion) for completion in completions[: len(batch)]]

    rollouts: dict[int, Rollout] = {}
    finished = (work or SharedWork()).run("responses", len(batches), make, _to_table, _from_table)
    with progress_bar("Generating responses", len(order), progress) as advance:
        for number, completions in finished:
            for i, completion in zip(batches[number], completions or (), strict=True):
                rollouts[i] = Rollout(list(prompt_ids[i]), completion)
            advance(len(batches[number]))
    return [rollouts[i] for i in range(len(order))]


def _to_table(completions: list[list[int]]) -> pa.Table:
    return pa.table({"completion_ids": pa.array(completions, pa.list_(pa.int32()))})


def _from_table(table: pa.Table) -> list[list[int]]:
    return table["completion_ids"].to_pylist()


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
