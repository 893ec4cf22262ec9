"""Responses to what the model showed while it wrote them: one batched pass over finished rollouts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .attention import block_numel
from .batches import batches_of
from .progress import progress_bar
from .rollouts import Rollout
from .tracing import AttentionCapture, AttentionTracer


logger = logging.get_logger(__name__)

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


def choose_local_heads(spans: Mapping[int, torch.Tensor], ratio: float = 0.3) -> dict[int, list[int]]:
    """
    Pick the heads that usually look close by: in them, a look far back stands out (arXiv 2510.13554 takes the 30% with
    the shortest span).

    Args:
        spans (`Mapping[int, torch.Tensor]`):
            Per layer index, the mean backward distance of each head, shape `(heads,)`.
        ratio (`float`, *optional*, defaults to `0.3`):
            Share of the heads to take, over all layers together; at least one.

    Returns:
        `dict[int, list[int]]`: query heads per layer index; layers without a local head are absent.
    """
    ranked = sorted((float(span), layer, head) for layer in spans for head, span in enumerate(spans[layer]))
    chosen: dict[int, list[int]] = {}
    for _, layer, head in ranked[: max(1, round(ratio * len(ranked)))]:
        chosen.setdefault(layer, []).append(head)
    return {layer: sorted(heads) for layer, heads in sorted(chosen.items())}


def trace_rollouts(
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    pad_token_id: int,
    heads: Mapping[int, Sequence[int]] | None = None,
    window: int = 16,
    token_budget: int = 2048,
    temperature: float = 1.0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = True,
) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
    """
    Pass finished rollouts once through the model and read attention and entropy at every response token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model; it is put into evaluation mode for the pass and back afterwards.
        rollouts (`Sequence[Rollout]`):
            Rollouts to trace. An empty response gives an empty trace.
        pad_token_id (`int`):
            Padding token.
        heads (`Mapping[int, Sequence[int]]`, *optional*):
            Query heads per layer index. Defaults to [`choose_local_heads`] by their spans in 32 of the rollouts, which
            go first, evenly spaced.
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.
        token_budget (`int`, *optional*, defaults to `2048`):
            Tokens a forward pass, padding included: bounds the memory of the logits.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature at which the responses were sampled, for the entropy.
        autocast (`Callable`, *optional*):
            Context manager for the forward passes, for mixed precision.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `tuple[list[ResponseTrace], dict[int, list[int]]]`: one trace per rollout, in their order, and the heads.

    Raises:
        ValueError: if all responses are empty.
    """
    answered = [index for index, rollout in enumerate(rollouts) if not rollout.is_empty]
    if not answered:
        raise ValueError(f"All {len(rollouts)} responses are empty: there is nothing to trace.")
    empty = np.zeros(0, np.float32)
    traces = [ResponseTrace(empty, empty, empty)] * len(rollouts)
    with progress_bar("Tracing attention", len(rollouts), progress) as advance, _evaluating(model):

        def run(tracer: AttentionTracer, indices: list[int]) -> Iterator[_TracedBatch]:
            for batch in batches_of(rollouts, indices, pad_token_id, token_budget):
                batch = batch.to(model.device)
                with (
                    torch.no_grad(),
                    autocast(),
                    tracer.capture(batch.attention_mask, num_queries=batch.num_shown) as capture,
                ):
                    logits = model(
                        input_ids=batch.input_ids,
                        attention_mask=batch.attention_mask,
                        use_cache=False,
                        logits_to_keep=batch.num_shown,
                    ).logits
                yield _TracedBatch(batch.indices, capture, _entropy(logits, temperature), batch.response_mask)
                advance(len(batch.indices))

        def finish(batch: _TracedBatch) -> None:
            signals = (batch.capture.signal("long_range_mass"), batch.capture.signal("waad"), batch.entropy)
            for index, trace in zip(batch.indices, split_traces(*signals, batch.response_mask), strict=True):
                traces[index] = trace

        advance(len(rollouts) - len(answered))
        if heads is None:
            sample = answered[:: max(1, len(answered) // _NUM_SPAN_RESPONSES)][:_NUM_SPAN_RESPONSES]
            answered = sorted(set(answered) - set(sample))
            # All heads are traced in the sample and kept until it is known which of them to average.
            tracer = AttentionTracer(model, window=window)
            if tracer.skipped_layers:
                logger.info(f"Layers left out of the trace: {tracer.skipped_layers}.")
            batches = list(run(tracer, sample))
            heads = choose_local_heads(_mean_spans(batches))
            for batch in batches:
                batch.capture = batch.capture.select(heads)
                finish(batch)
        for batch in run(AttentionTracer(model, heads=heads, window=window), answered):
            finish(batch)
    return traces, {layer: list(chosen) for layer, chosen in heads.items()}


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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _mean_spans(batches: Sequence["_TracedBatch"]) -> dict[int, torch.Tensor]:
    """Mean backward distance of each head over the response tokens of all batches, up to a common factor."""
    total: dict[int, torch.Tensor] = {}
    for batch in batches:
        for layer, statistics in batch.capture.layers.items():
            summed = (statistics.spans * batch.response_mask[:, None, :].to(statistics.spans.device)).sum(dim=(0, 2))
            total[layer] = total.get(layer, 0) + summed.cpu()
    return total


@torch.no_grad()
def _entropy(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Entropy in nats, `(batch, tokens, vocabulary)` to float32 `(batch, tokens)`, a few tokens at a time."""
    # A float32 copy of all logits would be the largest tensor of the whole pass.
    blocks = logits.flatten(0, 1).split(max(1, block_numel(logits.device) // logits.shape[-1]))
    entropy = []
    for block in blocks:
        # The bound keeps 0 * -inf away where a token is ruled out.
        log_probabilities = (block.float() / temperature).log_softmax(dim=-1).clamp_(min=-1e4)
        entropy.append(-(log_probabilities.exp() * log_probabilities).sum(dim=-1))
    return torch.cat(entropy).view(logits.shape[:2])


@dataclass
class _TracedBatch:
    """
    What one forward pass showed. Tensors begin at the last prompt position, which produced the first response token.

    Attributes:
        indices (`list[int]`): rollouts in the batch.
        capture ([`AttentionCapture`]): statistics of shape `(batch, heads, tokens)`.
        entropy (`torch.Tensor` of shape `(batch, tokens)`): in nats.
        response_mask (`torch.Tensor` of shape `(batch, tokens)`): positions that produced response tokens.
    """

    indices: list[int]
    capture: AttentionCapture
    entropy: torch.Tensor
    response_mask: torch.Tensor
