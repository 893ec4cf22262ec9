"""Prompts to responses, and responses to what the model showed while it wrote them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .tracing import AttentionTracer, find_attention_modules, select_layers


# Responses used to rank the heads by span: enough for a stable mean, negligible against the pool.
_NUM_SPAN_RESPONSES = 32


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


@dataclass(frozen=True)
class ResponseTrace:
    """
    What one pass over a rollout showed, one number per response token. Entry `t` belongs to the position that
    produced response token `t`.

    Attributes:
        long_range_mass (`np.ndarray` of shape `(num_tokens,)`, float32):
            Attention probability further back than the window, averaged over the traced heads.
        entropy (`np.ndarray` of shape `(num_tokens,)`, float32):
            Entropy in nats of the distribution from which the token was drawn, at temperature 1.
    """

    long_range_mass: np.ndarray
    entropy: np.ndarray

    def __len__(self) -> int:
        return len(self.long_range_mass)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """
    Show a progress bar with an estimate of the time left.

    Args:
        description (`str`): what is being done.
        total (`int`): number of items.

    Yields:
        `Callable[[int], None]`: to be called with the number of items just finished.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


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
    with _maybe_progress("Generating responses", len(order), progress) as advance:
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
            How to generate.

    Returns:
        `Callable[[list[list[int]]], list[list[int]]]`: batch of prompt ids to batch of response ids.
    """
    end_ids = generation_config.eos_token_id
    end_ids = {end_ids} if isinstance(end_ids, int) else set(end_ids or ())

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": prompts}, padding=True, padding_side="left", return_tensors="pt")
        batch = batch.to(model.device)
        with torch.no_grad():
            output = cast(Any, model).generate(**batch, generation_config=generation_config)
        return [_up_to_end(row, end_ids) for row in output[:, batch["input_ids"].shape[1] :].tolist()]

    return generate


def _up_to_end(ids: list[int], end_ids: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids


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
    indices = list(find_attention_modules(model))
    layers = {indices[i] for i in select_layers(len(indices))}
    total: dict[int, torch.Tensor] = {}
    skipped: dict[int, str] = {}
    # Layers with a sliding window drop out during the first passes: start from all, keep the middle ones left.
    all_heads: dict[int, None] = dict.fromkeys(indices)
    tracer = AttentionTracer(model, heads=all_heads)
    for capture, _, response_mask, _ in _traced_batches(model, sample, tracer, pad_token_id, token_budget, autocast):
        skipped |= capture.skipped_layers
        for layer, spans in capture.spans.items():
            summed = (spans * response_mask[:, None, :]).sum(dim=(0, 2)).cpu()
            total[layer] = total.get(layer, 0) + summed
    total = {layer: spans for layer, spans in total.items() if layer not in skipped}
    if not total:
        raise ValueError(
            "No layer of this model can be traced: " + "; ".join(f"layer {i}: {why}" for i, why in skipped.items())
        )
    if not layers & set(total):
        layers = {sorted(total)[i] for i in select_layers(len(total))}
    ranked = sorted(
        (float(span), layer, head) for layer in layers & set(total) for head, span in enumerate(total[layer])
    )
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
        autocast (`Callable`, *optional*):
            Context manager for the forward passes, for mixed precision.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[ResponseTrace]`: one per rollout, in their order.
    """
    tracer = AttentionTracer(model, heads=heads, window=window)
    traces = [ResponseTrace(np.zeros(0, np.float32), np.zeros(0, np.float32))] * len(rollouts)
    with _maybe_progress("Tracing attention", len(rollouts), progress) as advance:
        advance(sum(rollout.is_empty for rollout in rollouts))
        for capture, batch, response_mask, logits in _traced_batches(
            model, rollouts, tracer, pad_token_id, token_budget, autocast
        ):
            signal = capture.signal().cpu()
            entropy = _entropy(logits).cpu()
            # The logits cover the last positions only: align the signal and the mask with them.
            signal = signal[:, -entropy.shape[1] :]
            mask = response_mask[:, -entropy.shape[1] :].bool().cpu()
            for row, index in enumerate(batch):
                traces[index] = ResponseTrace(signal[row][mask[row]].numpy(), entropy[row][mask[row]].numpy())
            advance(len(batch))
    return traces


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, `(batch, tokens, vocabulary)` to float32 `(batch, tokens)`, a few tokens at a time."""
    # Blocks of 16 MiB: a float32 copy of all logits would be the largest tensor of the whole pass.
    tokens = logits.flatten(0, 1).split(max(1, 2**22 // logits.shape[-1]))
    entropy = torch.cat([torch.special.entr(block.float().softmax(dim=-1)).sum(dim=-1) for block in tokens])
    return entropy.view(logits.shape[:2])


def _traced_batches(model, rollouts, tracer, pad_token_id, token_budget, autocast):
    """
    Run rollouts through the model in batches of similar length under the tracer.

    Prompts are padded on the left and responses on the right, so that all responses begin at the same column.

    Yields:
        Tuples of the capture, the indices of the rollouts in the batch, the mask of the positions that produced
        response tokens (batch, tokens), and the logits from the last prompt position on.
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
            with torch.no_grad(), autocast(), tracer.capture(attention_mask) as capture:
                logits = model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    use_cache=False,
                    logits_to_keep=response_length + 1,
                ).logits
            yield capture, batch, response_mask, logits
    finally:
        model.train(was_training)


@contextmanager
def _maybe_progress(description: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    if shown:
        with progress_bar(description, total) as advance:
            yield advance
    else:
        yield lambda count: None
