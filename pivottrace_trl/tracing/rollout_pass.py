"""Traces finished rollouts in one batched pass."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..processes import SharedWork
from ..progress import progress_bar
from .batches import pad_batch, plan_batches
from .response_tracer import ResponseCapture, ResponseTracer
from .rollouts import Rollout
from .token_statistics import TokenStatistics, token_statistics
from .trace import OPTIONAL_SIGNALS, ResponseTrace, traces_from_table, traces_to_table


logger = logging.get_logger(__name__)

# Number of responses used to rank the heads by span: enough for a stable mean, and cheap compared to the pool.
_NUM_SPAN_RESPONSES = 32


def choose_local_heads(spans: Mapping[int, torch.Tensor], ratio: float = 0.3) -> dict[int, list[int]]:
    """
    Choose the local heads, which usually look at near tokens, so that a look far back stands out. arXiv 2510.13554
    takes the 30% with the shortest span. `spans` holds the mean backward distance of each head per layer, of shape
    `(heads,)`. `ratio` is the share of heads to take over all layers together, at least one head. Layers without a
    local head are absent from the result.
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
    signals: Collection[str] = (),
    window: int = 16,
    token_budget: int = 2048,
    temperature: float = 1.0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = True,
    work: SharedWork | None = None,
) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
    """
    Run the model once on finished rollouts, and read attention and entropy at every response token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model. It is in evaluation mode during the pass, and in its former mode afterwards.
        rollouts (`Sequence[Rollout]`):
            Rollouts to trace. An empty response gives an empty trace.
        pad_token_id (`int`):
            Padding token.
        heads (`Mapping[int, Sequence[int]]`, *optional*):
            Query heads per layer index. Defaults to [`choose_local_heads`], by the spans in 32 evenly spaced rollouts,
            which are traced first.
        signals (`Collection[str]`, *optional*):
            Further signals to trace, from [`OPTIONAL_SIGNALS`]. `agreement` cannot be traced, as it needs several
            responses.
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.
        token_budget (`int`, *optional*, defaults to `2048`):
            Largest number of tokens per forward pass, padding included. It bounds the memory of the logits.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature at which the responses were sampled, for the entropy.
        autocast (`Callable`, *optional*):
            Returns a context manager for the forward passes, for mixed precision.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        work ([`SharedWork`], *optional*):
            Distributes the batches over processes, and stores finished ones. Defaults to this process alone.

    Returns:
        `tuple[list[ResponseTrace], dict[int, list[int]]]`: one trace per rollout, in the same order, and the heads.
        With several processes, only rank 0 gets the traces; the list is empty on the others.

    Raises:
        ValueError: if all responses are empty, or a signal is unknown.
    """
    if unknown := sorted(set(signals) - OPTIONAL_SIGNALS):
        raise ValueError(f"`signals` names {unknown}, but the optional signals are {sorted(OPTIONAL_SIGNALS)}.")
    answered = [index for index, rollout in enumerate(rollouts) if not rollout.is_empty]
    if not answered:
        raise ValueError(
            f"All {len(rollouts)} responses are empty, so there is nothing to score. Check the chat template, the "
            "end-of-sequence token and the maximum completion length."
        )
    empty = np.zeros(0, np.float32)
    traces = [ResponseTrace(empty, empty, empty, empty)] * len(rollouts)
    work = work or SharedWork()

    def run(tracer: ResponseTracer, indices: list[int]) -> tuple[ResponseCapture, TokenStatistics]:
        batch = pad_batch(rollouts, indices, pad_token_id, model.device)
        with torch.no_grad(), autocast(), tracer.capture(batch.attention_mask, batch.response_mask) as capture:
            logits = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                logits_to_keep=batch.num_shown,
            ).logits
        # Position t - 1 produces token t. The token that the last position produces is not known.
        produced = batch.input_ids[:, -batch.num_shown :].roll(-1, dims=1)
        return capture, token_statistics(logits, produced, temperature)

    def trace_sample(_: int) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
        # All heads are traced in the sample, and kept until it is known which of them to average.
        tracer = ResponseTracer(model, signals=signals, window=window)
        if tracer.skipped_layers:
            logger.info(f"Layers left out of the trace: {tracer.skipped_layers}.")
        passes = [run(tracer, indices) for indices in sample_batches]
        heads = choose_local_heads(_mean_spans([capture for capture, _ in passes]))
        return [trace for capture, statistics in passes for trace in capture.traces(statistics, heads)], heads

    with progress_bar("Tracing attention", len(rollouts), progress) as advance, _evaluating(model):
        advance(len(rollouts) - len(answered))
        if heads is None:
            sample = answered[:: max(1, len(answered) // _NUM_SPAN_RESPONSES)][:_NUM_SPAN_RESPONSES]
            answered = sorted(set(answered) - set(sample))
            sample_batches = plan_batches(rollouts, sample, token_budget)
            ((_, made),) = work.run("sample", 1, trace_sample, _sample_to_table, _sample_from_table)
            assert made is not None
            traced, heads = made
            for index, trace in zip(sum(sample_batches, []), traced, strict=True):
                traces[index] = trace
            advance(len(sample))
        tracer = ResponseTracer(model, heads, signals, window)
        batches = plan_batches(rollouts, answered, token_budget)

        def trace_batch(number: int) -> list[ResponseTrace]:
            capture, statistics = run(tracer, batches[number])
            return capture.traces(statistics)

        finished = work.run("traces", len(batches), trace_batch, traces_to_table, traces_from_table, only_main=True)
        for number, results in finished:
            for index, trace in zip(batches[number], results or (), strict=results is not None):
                traces[index] = trace
            advance(len(batches[number]))
    return traces, {layer: list(chosen) for layer, chosen in heads.items()}


def _sample_to_table(made: tuple[list[ResponseTrace], dict[int, list[int]]]) -> pa.Table:
    traces, heads = made
    return traces_to_table(traces).replace_schema_metadata({"heads": json.dumps(heads)})


def _sample_from_table(table: pa.Table) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
    heads = json.loads((table.schema.metadata or {})[b"heads"])
    return traces_from_table(table), {int(layer): chosen for layer, chosen in heads.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _mean_spans(captures: Sequence[ResponseCapture]) -> dict[int, torch.Tensor]:
    """Mean backward distance of each head over the response tokens of all captures, up to a common factor. Returns
    tensors of shape `(heads,)` per layer index."""
    total: dict[int, torch.Tensor] = {}
    for capture in captures:
        mask = capture.response_mask[:, None, :]
        for layer in capture.tracer.averaged:
            spans = capture.attention.layers[layer].spans
            total[layer] = total.get(layer, 0) + (spans * mask.to(spans.device)).sum(dim=(0, 2)).cpu()
    return total
