"""Generates responses to prompts."""

import math
from collections.abc import Callable, Sequence
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
    A prompt and a sampled response.

    Attributes:
        prompt_ids (`list[int]`): token ids of the prompt, as the model read them.
        completion_ids (`list[int]`): token ids of the response, up to and including the end-of-sequence token.
    """

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def is_empty(self) -> bool:
        """Whether the response is empty, or only the end-of-sequence token."""
        return len(self.completion_ids) <= 1


def even_batches(prompt_ids: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """
    Divide prompts into batches of similar length and equal size, longest prompts first. Returns the indices of the
    prompts of each batch. The last prompt is repeated to fill the last batch, as generation engines that serve several
    processes expect batches of the same size from all of them.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), reverse=True)
    size = math.ceil(len(order) / max(1, math.ceil(len(order) / batch_size)))
    batches = [order[start : start + size] for start in range(0, len(order), size or 1)]
    return [batch + batch[-1:] * (size - len(batch)) for batch in batches]


def generate_rollouts(
    generate: Callable[[list[list[int]], int], list[list[int]]],
    prompt_ids: Sequence[list[int]],
    batches: Sequence[Sequence[int]],
    progress: bool = True,
    work: SharedWork | None = None,
) -> list[Rollout]:
    """
    Generate one response per prompt. `generate` takes the token ids of a batch of prompts, and the number of the
    batch. If it uses that number as a seed, a response depends neither on earlier responses nor on the number of
    processes.

    Raises:
        RuntimeError: if `generate` returns the wrong number of responses.
    """

    def make(number: int) -> list[list[int]]:
        prompts = [prompt_ids[i] for i in batches[number]]
        completions = generate(prompts, number)
        if len(completions) != len(prompts):
            raise RuntimeError(f"The generator returned {len(completions)} responses for {len(prompts)} prompts.")
        return [list(completion) for completion in completions]

    rollouts: dict[int, Rollout] = {}
    finished = (work or SharedWork()).run("responses", len(batches), make, _to_table, _from_table)
    with progress_bar("Generating responses", len(prompt_ids), progress) as advance:
        for number, completions in finished:
            for i, completion in zip(batches[number], completions or (), strict=True):
                rollouts.setdefault(i, Rollout(list(prompt_ids[i]), completion))
            advance(len(set(batches[number])))
    return [rollouts[i] for i in range(len(prompt_ids))]


def _to_table(completions: list[list[int]]) -> pa.Table:
    return pa.table({"completion_ids": pa.array(completions, pa.list_(pa.int32()))})


def _from_table(table: pa.Table) -> list[list[int]]:
    return table["completion_ids"].to_pylist()


def transformers_generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig
) -> Callable[[list[list[int]]], list[list[int]]]:
    """
    Wrap `model.generate` as a function from the token ids of prompts to those of responses.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model, for the padding token.
        generation_config ([`~transformers.GenerationConfig`]):
            Settings of the generation. Missing settings get the library's defaults, not those that the model ships.

    Returns:
        `Callable[[list[list[int]]], list[list[int]]]`: maps token ids of prompts to token ids of responses.
    """
    end_ids = generation_config.eos_token_id
    end_ids = {end_ids} if isinstance(end_ids, int) else set(end_ids or ())
    owner: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": prompts}, padding=True, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)
        # `generate` takes missing settings, such as a repetition penalty, from the model's own configuration.
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
