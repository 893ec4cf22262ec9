"""Finished rollouts to padded batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from .rollouts import Rollout


# More rows than this do not make a pass over short rollouts faster.
_MAX_ROWS = 64


@dataclass(frozen=True)
class RolloutBatch:
    """
    Rollouts in one tensor: prompts padded on the left and responses on the right, so that all responses begin at the
    same column.

    Attributes:
        indices (`list[int]`): rollouts in the batch.
        input_ids (`torch.Tensor` of shape `(batch, tokens)`, int64): token ids.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, int64): 1 for real tokens.
        response_mask (`torch.Tensor` of shape `(batch, num_shown)`, int64): 1 where a response token was produced.
        num_shown (`int`): number of positions from the last one of the prompts on.
    """

    indices: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    num_shown: int

    def to(self, device: torch.device) -> "RolloutBatch":
        """Return the batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response_mask=self.response_mask.to(device),
        )


def batches_of(
    rollouts: Sequence[Rollout], indices: Sequence[int], pad_token_id: int, token_budget: int
) -> Iterator[RolloutBatch]:
    """
    Batch rollouts by length, see [`plan_batches`].

    Args:
        rollouts (`Sequence[Rollout]`):
            Rollouts.
        indices (`Sequence[int]`):
            Which of them to take.
        pad_token_id (`int`):
            Padding token.
        token_budget (`int`):
            Tokens a batch.

    Yields:
        [`RolloutBatch`]
    """
    for batch in plan_batches(rollouts, indices, token_budget):
        yield pad_batch(rollouts, batch, pad_token_id)


def plan_batches(rollouts: Sequence[Rollout], indices: Sequence[int], token_budget: int) -> list[list[int]]:
    """
    Group rollouts by length, longest first: what does not fit into memory fails at once.

    Args:
        rollouts (`Sequence[Rollout]`):
            Rollouts.
        indices (`Sequence[int]`):
            Which of them to take.
        token_budget (`int`):
            Tokens a batch, padding included; a rollout that is longer makes a batch of its own.

    Returns:
        `list[list[int]]`: rollouts of each batch.
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


def pad_batch(rollouts: Sequence[Rollout], indices: list[int], pad_token_id: int) -> RolloutBatch:
    """
    Put rollouts into one tensor.

    Args:
        rollouts (`Sequence[Rollout]`):
            Rollouts.
        indices (`list[int]`):
            Which of them to take.
        pad_token_id (`int`):
            Padding token.

    Returns:
        [`RolloutBatch`]
    """
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
    return RolloutBatch(indices, input_ids, attention_mask, response_mask[:, -num_shown:], num_shown)
