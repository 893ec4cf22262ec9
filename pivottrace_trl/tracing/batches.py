"""Puts finished rollouts into padded batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .rollouts import Rollout


# Largest number of rows in a batch. More do not make a pass over short rollouts faster.
_MAX_ROWS = 64


@dataclass(frozen=True)
class RolloutBatch:
    """
    Rollouts in one tensor of shape `(batch, tokens)`. Prompts are padded on the left and responses on the right, so
    that all responses begin at the same column. The `response_mask`, of shape `(batch, num_shown)`, begins at the last
    position of the prompts and is 1 at positions that produced a response token.
    """

    indices: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    num_shown: int


def plan_batches(rollouts: Sequence[Rollout], indices: Sequence[int], token_budget: int) -> list[list[int]]:
    """
    Group the rollouts at `indices` by length, longest first, so that a lack of memory shows at once. A batch has at
    most `token_budget` tokens, padding included; a longer rollout gets its own batch.
    """

    def num_tokens(index: int) -> int:
        return len(rollouts[index].prompt_ids) + len(rollouts[index].completion_ids)

    batches: list[list[int]] = []
    batch: list[int] = []
    prompt_length = response_length = 0
    for index in sorted(indices, key=num_tokens, reverse=True):
        longest_prompt = max(prompt_length, len(rollouts[index].prompt_ids))
        longest_response = max(response_length, len(rollouts[index].completion_ids))
        is_over_budget = (len(batch) + 1) * (longest_prompt + longest_response) > token_budget
        if batch and (is_over_budget or len(batch) == _MAX_ROWS):
            batches.append(batch)
            batch = []
            longest_prompt, longest_response = len(rollouts[index].prompt_ids), len(rollouts[index].completion_ids)
        prompt_length, response_length = longest_prompt, longest_response
        batch.append(index)
    return [*batches, batch] if batch else batches


def pad_batch(
    rollouts: Sequence[Rollout], indices: list[int], pad_token_id: int, device: torch.device | str = "cpu"
) -> RolloutBatch:
    """Put the rollouts at `indices` into one tensor."""
    prompt_length = max(len(rollouts[index].prompt_ids) for index in indices)
    response_length = max(len(rollouts[index].completion_ids) for index in indices)
    shape = (len(indices), prompt_length + response_length)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask, response_mask = torch.zeros(2, *shape, dtype=torch.long)
    for row, index in enumerate(indices):
        prompt, completion = rollouts[index].prompt_ids, rollouts[index].completion_ids
        start, end = prompt_length - len(prompt), prompt_length + len(completion)
        input_ids[row, start:end] = torch.tensor(prompt + completion)
        attention_mask[row, start:end] = 1
        # Position t - 1 produces token t.
        response_mask[row, prompt_length - 1 : end - 1] = 1
    num_shown = response_length + 1
    return RolloutBatch(
        indices=indices,
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        response_mask=response_mask[:, -num_shown:].to(device),
        num_shown=num_shown,
    )
