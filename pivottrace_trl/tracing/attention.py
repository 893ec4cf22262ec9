"""Computes long-range statistics from the queries and keys of a causal attention layer. Only tensors, no model."""

from dataclasses import dataclass

import torch


def block_numel(device: torch.device) -> int:
    """Number of elements per block. A float32 block of 4 MiB fits a CPU's cache; a GPU needs larger ones."""
    return 2**20 if device.type == "cpu" else 2**23


@dataclass(frozen=True)
class AttentionStatistics:
    """
    Statistics of one layer's attention at each query position. All are float32 tensors of shape
    `(batch, heads, queries)`, and 0 at padding positions.

    Attributes:
        long_range_mass (`torch.Tensor`):
            Attention probability on keys at least `window` positions back, without sinks, in `[0, 1]`.
        waad (`torch.Tensor`):
            Windowed average attention distance in tokens, `sum_s A[t, s] * min(t - s, waad_window)` (WAAD, arXiv
            2510.13554).
        spans (`torch.Tensor`):
            Average attention distance in tokens, `sum_s A[t, s] * (t - s)` (arXiv 2510.13554).
        newest (`torch.Tensor`):
            Attention probability `A[t, t]` on the newest token, which is the one just before the token that position
            `t` produces (the "previous token" of RAUQ, arXiv 2505.20045).
    """

    long_range_mass: torch.Tensor
    waad: torch.Tensor
    spans: torch.Tensor
    newest: torch.Tensor


def attention_statistics(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    key_mask: torch.Tensor,
    window: int = 16,
    waad_window: int = 10,
    num_sinks: int = 4,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
) -> AttentionStatistics:
    """
    Compute exact statistics of causal attention without storing the attention map. Probabilities are computed for a
    few queries at a time, and reduced to four numbers per query while they are in the cache. Extra memory is `O(batch
    * heads * tokens)`; the time is that of `query @ key.T` for the given queries.

    The queries, of shape `(batch, heads, queries, head_dim)`, are those of the last positions. The keys, of shape
    `(batch, heads, tokens, head_dim)`, are repeated for grouped queries. `key_mask`, of shape `(batch, tokens)`, marks
    real tokens. `softcap` is that of Gemma 2, `softcap * tanh(logits / softcap)`. `sink_logits`, of shape `(heads,)`,
    are learned logits that take part in the denominator (GPT-OSS).
    """
    batch_size, num_heads, num_queries, _ = query.shape
    num_tokens = key.shape[2]
    query, key = query.float() * scaling, key.float()
    position = torch.arange(num_tokens, device=query.device)
    # Padding on the right is in the future of every real query. Only padding before a real token must be masked.
    precedes_real = key_mask.flip(1).cumsum(1).flip(1) > 0
    hidden_columns = (~key_mask & precedes_real).any(dim=0).nonzero()
    num_hidden = int(hidden_columns.max()) + 1 if len(hidden_columns) else 0
    # Column of the n-th real token of each row; `num_tokens` if a row has fewer.
    nth = torch.arange(1, num_sinks + 1, device=query.device).expand(batch_size, -1).contiguous()
    sinks = torch.searchsorted(key_mask.cumsum(1), nth)[:, None, None, :]

    # Shorter chunks waste less work on keys in the future of their queries; longer ones need fewer calls.
    longest = 64 if query.device.type == "cpu" else 512
    chunk = max(1, min(longest, block_numel(query.device) // (batch_size * num_heads * num_tokens)))
    masses, waads, spans, newests = [], [], [], []
    for start in range(num_tokens - num_queries, num_tokens, chunk):
        rows = position[start : start + chunk]
        stop = start + len(rows)
        first = 0 if sliding_window is None else max(0, start - sliding_window + 1)
        offset = start - (num_tokens - num_queries)
        logits = query[:, :, offset : offset + len(rows)] @ key[:, :, first:stop].transpose(2, 3)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        # Masks are applied only to the columns that need them, as passes over the whole block dominate the time.
        logits[..., start - first :].masked_fill_(position[start:stop] > rows[:, None], float("-inf"))
        if sliding_window is not None:
            edge = position[first : first + len(rows)]
            logits[..., : len(edge)].masked_fill_(rows[:, None] - edge >= sliding_window, float("-inf"))
        if num_hidden > first:
            is_hidden = ~key_mask[:, None, None, first:num_hidden]
            logits[..., : num_hidden - first].masked_fill_(is_hidden[..., : stop - first], float("-inf"))
        # Padding rows before the first real token see no keys and become NaN, which is filled below.
        probabilities = logits.softmax(dim=-1)

        # Distances are relative to the chunk's first row, so that rounding errors do not grow with the position.
        behind = (start - position[first:stop]).float()
        span = probabilities @ behind + (rows - start)
        nearest = max(first, start - max(window, waad_window) + 1)
        near = probabilities[..., nearest - first :]
        distance = rows[:, None] - position[nearest:stop]
        local = (near * (distance < window)).sum(dim=-1)
        waad = waad_window - (near * (waad_window - distance).clamp(min=0)).sum(dim=-1)
        is_far_sink = (rows[:, None] - sinks >= window) & (sinks >= first)
        columns = (sinks.clamp(first, stop - 1) - first).expand(batch_size, num_heads, len(rows), num_sinks)
        on_sinks = (probabilities.gather(-1, columns) * is_far_sink).sum(dim=-1)
        mass = (1 - local - on_sinks).clamp(min=0)
        newest = probabilities.diagonal(start - first, dim1=-2, dim2=-1)
        if sink_logits is not None:
            key_share = torch.sigmoid(logits.logsumexp(dim=-1) - sink_logits.float()[None, :, None])
            mass, waad, span, newest = (value * key_share for value in (mass, waad, span, newest))
        masses.append(mass)
        waads.append(waad)
        spans.append(span)
        newests.append(newest)

    is_padding = ~key_mask[:, None, num_tokens - num_queries :]
    return AttentionStatistics(
        *(torch.cat(parts, dim=2).masked_fill_(is_padding, 0.0) for parts in (masses, waads, spans, newests))
    )
