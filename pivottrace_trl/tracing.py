"""Read long-range attention from a decoder with forward hooks. The only module that touches attention modules."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# Name under which the recording attention function is registered with transformers.
_TRACED_IMPLEMENTATION = "pivottrace_traced"
# Attention modules that are inside a traced forward pass, with what records them.
_RECORDERS: dict[nn.Module, "_LayerRecorder"] = {}
# Queries handled at a time: bounds the extra memory to `heads * _QUERY_CHUNK * keys` numbers per row.
_QUERY_CHUNK = 128


@dataclass
class AttentionCapture:
    """
    What one traced forward pass recorded.

    Attributes:
        long_range_mass (`dict[int, torch.Tensor]`):
            Per traced layer, a float32 tensor of shape `(batch, heads, queries)`: the attention probability that each
            query position puts on keys at least `window` positions back, sinks left out.
        spans (`dict[int, torch.Tensor]`):
            Per traced layer, a float32 tensor of shape `(batch, heads, queries)`: the expected backward distance
            `sum_s A[t, s] * (t - s)` in tokens (arXiv 2510.13554).
        skipped_layers (`dict[int, str]`):
            Layers that could not be traced, with the reason.
    """

    long_range_mass: dict[int, torch.Tensor] = field(default_factory=dict)
    spans: dict[int, torch.Tensor] = field(default_factory=dict)
    skipped_layers: dict[int, str] = field(default_factory=dict)

    def signal(self) -> torch.Tensor:
        """
        Long-range mass averaged over the traced heads of all traced layers.

        Returns:
            `torch.Tensor` of shape `(batch, queries)`, float32, in `[0, 1]`.
        """
        if not self.long_range_mass:
            raise RuntimeError(
                "No layer was traced: "
                + ("; ".join(f"layer {i}: {why}" for i, why in self.skipped_layers.items()) or "no forward pass ran")
                + ". Run the model inside `capture()`, on the whole sequence and without a KV cache."
            )
        # A model may be split over devices, layer by layer.
        masses = [mass.to(next(iter(self.long_range_mass.values())).device) for mass in self.long_range_mass.values()]
        return torch.cat(masses, dim=1).mean(dim=1)


def find_attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """
    Find the causal self-attention modules that go through the attention interface of transformers.

    They are looked up by what they do, not by class name: a module with a `layer_idx` whose `forward` asks the
    interface for its attention function. LoRA and bitsandbytes replace the linear layers inside, never the module.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.

    Returns:
        `dict[int, nn.Module]`: layer index to attention module, in order.

    Raises:
        ValueError: if the model has no such module.
    """
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        code = getattr(forward, "__code__", None)
        if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
            continue
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and getattr(module, "is_causal", False):
            found.setdefault(layer, module)
    if not found:
        name = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
        raise ValueError(
            f"{name} has no attention module that can be read: none of its modules calls the attention interface of "
            "transformers. State-space and linear-attention models (Mamba, RWKV) have no softmax attention to trace, "
            "and a model whose attention was patched (Unsloth) has to be loaded without the patch."
        )
    return dict(sorted(found.items()))


def select_layers(num_layers: int, num_selected: int = 5) -> list[int]:
    """
    Evenly spaced layers of the middle third (arXiv 2510.13554 uses five of them to stand for the network).

    Args:
        num_layers (`int`):
            Depth of the model.
        num_selected (`int`, *optional*, defaults to `5`):
            Number of layers wanted; fewer are returned if the middle third is smaller.

    Returns:
        `list[int]`: increasing layer positions.
    """
    start, stop = num_layers // 3, max(num_layers // 3 + 1, (2 * num_layers + 2) // 3)
    count = min(num_selected, stop - start)
    steps = [start + round(i * (stop - 1 - start) / max(count - 1, 1)) for i in range(count)]
    return sorted(set(steps))


class AttentionTracer:
    """
    Traces the long-range attention of a few layers while a model runs.

    During a capture each chosen attention module carries a pre-hook and a post-hook. The pre-hook routes the module's
    call of the attention interface through a recorder; the recorder calls the model's own attention function with the
    same arguments, returns its output untouched, and reduces queries and keys, which are then final (projected by LoRA
    or 4-bit layers, normalised, rotated), to one number per head and query. Attention maps are never stored: the
    recorder works on a few heads and `128` queries at a time, whatever the attention implementation.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        heads (`Mapping[int, Sequence[int] | None]`, *optional*):
            Query heads to trace per layer index, `None` for all of a layer. Defaults to all heads of
            [`select_layers`].
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.
        num_sinks (`int`, *optional*, defaults to `4`):
            Number of first tokens of each sequence whose attention is left out of the long-range mass: they attract
            attention from everywhere, whatever they say (attention sinks).

    Raises:
        ValueError: if no attention module can be read, or `heads` names a layer that does not exist.

    Example:
    ```python
    >>> tracer = AttentionTracer(model)
    >>> with torch.no_grad(), tracer.capture(batch["attention_mask"]) as capture:
    ...     model(**batch, use_cache=False)
    >>> capture.signal().shape
    torch.Size([8, 512])
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        heads: Mapping[int, Sequence[int] | None] | None = None,
        window: int = 16,
        num_sinks: int = 4,
    ):
        if window < 1:
            raise ValueError(f"`window` is {window}, but must be at least 1 token.")
        modules = find_attention_modules(model)
        if heads is None:
            indices = list(modules)
            layers: dict[int, Sequence[int] | None] = {indices[i]: None for i in select_layers(len(indices))}
        else:
            layers = dict(heads)
            if unknown := sorted(set(layers) - set(modules)):
                raise ValueError(f"`heads` names layers {unknown}, but the model has layers {list(modules)}.")
        self.window = window
        self.num_sinks = num_sinks
        self._modules = {index: modules[index] for index in layers}
        self._heads = layers

    @contextmanager
    def capture(self, attention_mask: torch.Tensor) -> Iterator[AttentionCapture]:
        """
        Trace the forward passes made inside the block; the last one counts. Hooks exist only inside it.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch, keys)`):
                1 for real tokens and 0 for padding, which may stand on the left, on the right or on both sides.

        Yields:
            [`AttentionCapture`], filled when the model has run.
        """
        capture = AttentionCapture()
        handles = []
        AttentionInterface.register(_TRACED_IMPLEMENTATION, _traced_attention_forward)
        try:
            for index, module in self._modules.items():
                recorder = _LayerRecorder(
                    layer=index,
                    heads=self._heads[index],
                    window=self.window,
                    key_mask=attention_mask.bool(),
                    sink_mask=_sink_mask(attention_mask, self.num_sinks),
                    capture=capture,
                    own_config=module.config,
                )
                handles.append(module.register_forward_pre_hook(recorder.enter))
                handles.append(module.register_forward_hook(recorder.leave, always_call=True))
            yield capture
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _LayerRecorder:
    """Hooks of one layer and the reduction of its attention."""

    layer: int
    heads: Sequence[int] | None
    window: int
    key_mask: torch.Tensor
    sink_mask: torch.Tensor
    capture: AttentionCapture
    own_config: Any

    def enter(self, module: Any, args: tuple) -> None:
        traced_config = copy.copy(self.own_config)
        traced_config._attn_implementation = _TRACED_IMPLEMENTATION
        module.config = traced_config
        _RECORDERS[module] = self

    def leave(self, module: Any, args: tuple, output: object) -> None:
        # Runs after exceptions too (`always_call`), so that a failed forward pass leaves the module as it was.
        module.config = self.own_config
        _RECORDERS.pop(module, None)

    def attention_function(self, module: nn.Module) -> Callable:
        default = inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.own_config._attn_implementation, default)

    @torch.no_grad()
    def record(self, query: torch.Tensor, key: torch.Tensor, scaling: float | None, options: dict) -> None:
        num_queries, num_keys = query.shape[2], key.shape[2]
        if num_queries == 1:
            return  # a decoding step: the whole response is traced afterwards, in one pass
        if num_queries != num_keys or self.key_mask.shape != (query.shape[0], num_keys):
            raise RuntimeError(
                f"Layer {self.layer} attends from {num_queries} to {num_keys} positions in a batch of "
                f"{query.shape[0]}, but the attention mask given to `capture()` has shape "
                f"{tuple(self.key_mask.shape)}. Pass the mask of this very batch, and run without a KV cache."
            )
        sliding_window = options.get("sliding_window")
        if sliding_window is not None and sliding_window < num_keys:
            # A local layer cannot look far back, so that it has no long-range attention to speak of.
            self.capture.skipped_layers[self.layer] = f"sliding window of {sliding_window} in {num_keys} tokens"
            return
        groups = query.shape[1] // key.shape[1]
        heads = torch.arange(query.shape[1]) if self.heads is None else torch.as_tensor(self.heads)
        # Autocast would take the products of queries and keys in half precision, the float32 casts notwithstanding.
        with torch.autocast(query.device.type, enabled=False):
            mass, spans = attention_statistics(
                query[:, heads.to(query.device)],
                key[:, (heads // groups).to(key.device)],
                scaling if scaling is not None else query.shape[-1] ** -0.5,
                self.key_mask.to(query.device),
                self.sink_mask.to(query.device),
                self.window,
                softcap=options.get("softcap"),
                sink_logits=None if options.get("s_aux") is None else options["s_aux"][heads.to(query.device)],
            )
        self.capture.long_range_mass[self.layer] = mass
        self.capture.spans[self.layer] = spans


def _traced_attention_forward(module, query, key, value, attention_mask, *args, **kwargs):
    recorder = _RECORDERS[module]
    # Attention functions read the implementation's name from the module's config, which is why it is put back first.
    module.config = recorder.own_config
    output = recorder.attention_function(module)(module, query, key, value, attention_mask, *args, **kwargs)
    recorder.record(query, key, kwargs.get("scaling"), kwargs)
    return output


def _sink_mask(attention_mask: torch.Tensor, num_sinks: int) -> torch.Tensor:
    """Mark the first `num_sinks` real tokens of each row; shape and device of `attention_mask`, `bool`."""
    is_real = attention_mask.bool()
    return is_real & (is_real.long().cumsum(dim=1) <= num_sinks)


def attention_statistics(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    key_mask: torch.Tensor,
    sink_mask: torch.Tensor,
    window: int,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Long-range mass and expected distance of causal attention, `128` queries at a time.

    Args:
        query (`torch.Tensor` of shape `(batch, heads, tokens, head_dim)`):
            Queries as they enter the attention function.
        key (`torch.Tensor` of shape `(batch, heads, tokens, head_dim)`):
            Keys of the same heads (already repeated for grouped-query attention).
        scaling (`float`):
            Factor of the dot products.
        key_mask (`torch.Tensor` of shape `(batch, tokens)`, `bool`):
            Real tokens.
        sink_mask (`torch.Tensor` of shape `(batch, tokens)`, `bool`):
            Tokens whose attention does not count as long-range.
        window (`int`):
            Distance from which attention counts as long-range.
        softcap (`float`, *optional*):
            Logit soft-capping, `softcap * tanh(logits / softcap)` (Gemma 2).
        sink_logits (`torch.Tensor` of shape `(heads,)`, *optional*):
            Learned sink logit of each head, which takes part in the denominator (GPT-OSS).

    Returns:
        Tuple of two float32 tensors of shape `(batch, heads, tokens)`: the probability on keys at least `window` back
        that are no sinks, and the expected distance in tokens. Both are 0 at padding positions.
    """
    num_tokens = query.shape[2]
    position = torch.arange(num_tokens, device=query.device)
    masses, spans = [], []
    for start in range(0, num_tokens, _QUERY_CHUNK):
        rows = position[start : start + _QUERY_CHUNK]
        # Keys after the last query of the chunk are in its future.
        columns = position[: int(rows[-1]) + 1]
        logits = (query[:, :, rows].float() @ key[:, :, columns].float().transpose(2, 3)) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        distance = rows[:, None] - columns[None, :]
        visible = (distance >= 0) & key_mask[:, None, None, : len(columns)]
        logits = logits.masked_fill(~visible, float("-inf"))
        normaliser = logits.logsumexp(dim=-1, keepdim=True)
        if sink_logits is not None:
            normaliser = torch.logaddexp(normaliser, sink_logits.float()[None, :, None, None])
        # A padding row before the first real token sees nothing: its normaliser is -inf.
        probabilities = torch.exp(logits - normaliser).nan_to_num(0.0)
        is_far = (distance >= window) & ~sink_mask[:, None, None, : len(columns)]
        masses.append((probabilities * is_far).sum(dim=-1))
        spans.append((probabilities * distance.clamp(min=0)).sum(dim=-1))
    is_real = key_mask[:, None, :]
    return torch.cat(masses, dim=2) * is_real, torch.cat(spans, dim=2) * is_real
