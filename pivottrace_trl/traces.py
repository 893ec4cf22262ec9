"""Responses to what the model showed while it wrote them: one batched pass over finished rollouts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from .progress import progress_bar
from .rollouts import Rollout
from .tracing import AttentionTracer


# Responses used to rank the heads by span: enough for a stable mean, negligible against the pool.
_NUM_SPAN_RESPONSES = 32


@dataclass(frozen=True)
class ResponseTrace:
    """
    What one pass over a rollout showed, one number per response token. Entry `t` belongs to the position that
    produced response token `t`.

    Attributes:
        long_range_mass (`np.ndarray` of shape `(num_tokens,)`, float32):
            Attention probability further back than the window, averaged over the traced heads.
        waad (`np.ndarray` of shape `(num_tokens,)`, float32):
            Windowed average attention distance in tokens (arXiv 2510.13554), averaged over the traced heads.
        entropy (`np.ndarray` of shape `(num_tokens,)`, float32):
            Entropy in nats of the distribution from which the token was drawn.
    """

    long_range_mass: np.ndarray
    waad: np.ndarray
    entropy: np.ndarray

    def __len__(self) -> int:
        return len(self.long_range_mass)


def choose_local_heads(
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    pad_token_id: int,
    token_budget: int = 4096,
    ratio: float = 0.3,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[int, list[int]]:
    """
    Pick the heads that usually look close by: in them, a look far back stands out (arXiv 2510.13554 takes the 30% with
    the shortest span).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        rollouts (`Sequence[Rollout]`):
            Rollouts of the pool; 32 of them, evenly spaced, are used.
        pad_token_id (`int`):
            Padding token.
        token_budget (`int`, *optional*, defaults to `4096`):
            Tokens a forward pass, padding included.
        ratio (`float`, *optional*, defaults to `0.3`):
            Share of the heads to take, over all traced layers together.
        autocast (`Callable`, *optional*):
            Context manager for the forward passes, for mixed precision.

    Returns:
        `dict[int, list[int]]`: query heads per layer index; layers without a local head are absent.
    """
    step = max(1, len(rollouts) // _NUM_SPAN_RESPONSES)
    sample = [r for r in rollouts[::step] if not r.is_empty][:_NUM_SPAN_RESPONSES]
    total: dict[int, torch.Tensor] = {}
    tracer = AttentionTracer(model)
    for capture, _, response_mask, _ in _traced_batches(model, sample, tracer, pad_token_id, token_budget, autocast):
        for layer, statistics in capture.layers.items():
            summed = (statistics.spans * response_mask[:, None, :]).sum(dim=(0, 2)).cpu()
            total[layer] = total.get(layer, 0) + summed
    ranked = sorted((float(span), layer, head) for layer in total for head, span in enumerate(total[layer]))
    chosen: dict[int, list[int]] = {}
    for _, layer, head in ranked[: max(1, round(ratio * len(ranked)))]:
        chosen.setdefault(layer, []).append(head)
    return {layer: sorted(heads) for layer, heads in sorted(chosen.items())}


def trace_rollouts(
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    heads: Mapping[int, Sequence[int]],
    pad_token_id: int,
    window: int = 16,
    token_budget: int = 4096,
    temperature: float = 1.0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = True,
) -> list[ResponseTrace]:
    """
    Pass finished rollouts once through the model and read attention and entropy at every response token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model; it is put into evaluation mode for the pass and back afterwards.
        rollouts (`Sequence[Rollout]`):
            Rollouts to trace. An empty response gives an empty trace.
        heads (`Mapping[int, Sequence[int]]`):
            Query heads per layer index, from [`choose_local_heads`].
        pad_token_id (`int`):
            Padding token.
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.
        token_budget (`int`, *optional*, defaults to `4096`):
            Tokens a forward pass, padding included: bounds the memory of the logits.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature at which the responses were sampled, for the entropy.
        autocast (`Callable`, *optional*):
            Context manager for the forward passes, for mixed precision.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[ResponseTrace]`: one per rollout, in their order.
    """
    tracer = AttentionTracer(model, heads=heads, window=window)
    empty = np.zeros(0, np.float32)
    traces = [ResponseTrace(empty, empty, empty)] * len(rollouts)
    with progress_bar("Tracing attention", len(rollouts), progress) as advance:
        advance(sum(rollout.is_empty for rollout in rollouts))
        for capture, batch, response_mask, logits in _traced_batches(
            model, rollouts, tracer, pad_token_id, token_budget, autocast
        ):
            signals = (capture.signal("long_range_mass"), capture.signal("waad"), _entropy(logits, temperature))
            for index, trace in zip(batch, split_traces(*signals, response_mask), strict=True):
                traces[index] = trace
            advance(len(batch))
    return traces


def split_traces(
    long_range_mass: torch.Tensor, waad: torch.Tensor, entropy: torch.Tensor, response_mask: torch.Tensor
) -> list[ResponseTrace]:
    """
    Cut the signals of a batch into one trace a row.

    Args:
        long_range_mass (`torch.Tensor` of shape `(rows, queries)`): see [`ResponseTrace`].
        waad (`torch.Tensor` of shape `(rows, queries)`): see [`ResponseTrace`].
        entropy (`torch.Tensor` of shape `(rows, queries)`): see [`ResponseTrace`].
        response_mask (`torch.Tensor` of shape `(rows, queries)`): positions that produced response tokens.

    Returns:
        `list[ResponseTrace]`: one per row.
    """
    is_response = response_mask.bool().cpu().numpy()
    signals = [signal.detach().float().cpu().numpy() for signal in (long_range_mass, waad, entropy)]
    return [ResponseTrace(*(signal[row][mask] for signal in signals)) for row, mask in enumerate(is_response)]


def _entropy(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Entropy in nats, `(batch, tokens, vocabulary)` to float32 `(batch, tokens)`, a few tokens at a time."""
    # Blocks of 16 MiB: a float32 copy of all logits would be the largest tensor of the whole pass.
    tokens = logits.flatten(0, 1).split(max(1, 2**22 // logits.shape[-1]))
    entropy = [torch.special.entr((block.float() / temperature).softmax(dim=-1)).sum(dim=-1) for block in tokens]
    return torch.cat(entropy).view(logits.shape[:2])


def _traced_batches(model, rollouts, tracer, pad_token_id, token_budget, autocast):
    """
    Run rollouts through the model in batches of similar length under the tracer.

    Prompts are padded on the left and responses on the right, so that all responses begin at the same column.

    Yields:
        Tuples of the capture, the indices of the rollouts in the batch, the mask of the positions that produced
        response tokens and the logits, all from the last prompt position on.
    """
    order = sorted(
        (i for i, r in enumerate(rollouts) if not r.is_empty),
        key=lambda i: len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids),
        reverse=True,
    )
    was_training = model.training
    model.eval()
    try:
        while order:
            batch: list[int] = []
            prompt_length = response_length = 0
            while order and len(batch) < 64:
                candidate = rollouts[order[0]]
                longest_prompt = max(prompt_length, len(candidate.prompt_ids))
                longest_response = max(response_length, len(candidate.completion_ids))
                if batch and (len(batch) + 1) * (longest_prompt + longest_response) > token_budget:
                    break
                prompt_length, response_length = longest_prompt, longest_response
                batch.append(order.pop(0))
            shape = (len(batch), prompt_length + response_length)
            input_ids = torch.full(shape, pad_token_id)
            attention_mask = torch.zeros(shape, dtype=torch.long)
            response_mask = torch.zeros(shape, dtype=torch.long)
            for row, index in enumerate(batch):
                prompt, completion = rollouts[index].prompt_ids, rollouts[index].completion_ids
                start, end = prompt_length - len(prompt), prompt_length + len(completion)
                input_ids[row, start:end] = torch.tensor(prompt + completion)
                attention_mask[row, start:end] = 1
                # Position t - 1 produces token t.
                response_mask[row, prompt_length - 1 : end - 1] = 1
            input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
            response_mask = response_mask.to(model.device)
            shown = response_length + 1
            with torch.no_grad(), autocast(), tracer.capture(attention_mask, num_queries=shown) as capture:
                logits = model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    use_cache=False,
                    logits_to_keep=shown,
                ).logits
            yield capture, batch, response_mask[:, -shown:], logits
    finally:
        model.train(was_training)
