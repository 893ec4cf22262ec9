"""Reads long-range attention from a decoder with forward hooks."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from .attention import AttentionStatistics, attention_statistics
from .layers import find_attention_modules, select_layers, sliding_window


# Attention modules that are running inside a traced forward pass.
_RUNNING: dict[nn.Module, "_LayerHooks"] = {}


@dataclass
class AttentionCapture:
    """
    Attention statistics that hooks collected during one forward pass.

    Attributes:
        layers (`dict[int, AttentionStatistics]`):
            Statistics of each traced layer, float32 tensors of shape `(rows, heads, queries)`.
    """

    layers: dict[int, AttentionStatistics] = field(default_factory=dict)

    def signal(
        self, name: str = "long_range_mass", heads: Mapping[int, Sequence[int] | None] | None = None
    ) -> torch.Tensor:
        """
        Average one statistic over heads and layers.

        Args:
            name (`str`, *optional*, defaults to `"long_range_mass"`):
                Field of [`AttentionStatistics`].
            heads (`Mapping[int, Sequence[int] | None]`, *optional*):
                Indices among the traced heads of each layer, `None` for all of a layer. Defaults to all heads.

        Returns:
            `torch.Tensor` of shape `(rows, queries)`, float32.

        Raises:
            RuntimeError: if no layer was traced.
        """
        if not self.layers:
            raise RuntimeError(
                "No layer was traced: no forward pass reached the attention functions. Run the model inside "
                "`capture()`, on whole sequences, without a KV cache."
            )
        tensors = []
        for layer, places in (dict.fromkeys(self.layers) if heads is None else heads).items():
            tensor = getattr(self.layers[layer], name)
            tensors.append(tensor if places is None else tensor[:, list(places)])
        # The layers of a model may be on different devices.
        return torch.cat([tensor.to(tensors[0].device) for tensor in tensors], dim=1).mean(dim=1)


class AttentionTracer:
    """
    Traces the long-range attention of a few layers while a model runs.

    During a capture, each chosen attention module has a pre-hook and a post-hook, which mark the module that is
    running, and the attention function of transformers is wrapped. The wrapper calls it with the same arguments and
    returns its output unchanged. It also reduces the queries and keys, which are final at that point (projected by
    LoRA or 4-bit layers, normalised, rotated), to four numbers per head and query. Attention maps are never stored,
    whatever the attention implementation. Decoding steps with a KV cache and the second forward pass of gradient
    checkpointing are ignored. A model compiled with `torch.compile` runs uncompiled inside a capture.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        heads (`Mapping[int, Sequence[int] | None]`, *optional*):
            Query heads to trace per layer index, `None` for all heads of a layer. Defaults to all heads of the layers
            that [`select_layers`] chooses among those without a sliding window; if every layer has one, among all.
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.
        waad_window (`int`, *optional*, defaults to `10`):
            Distance in tokens at which the windowed average attention distance is capped.
        num_sinks (`int`, *optional*, defaults to `4`):
            Number of first tokens of each sequence that are left out of the long-range mass, as they attract attention
            whatever their content (attention sinks).

    Raises:
        ValueError: if no attention module can be read, `heads` names a layer or head that does not exist, or a window
            is not positive.

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
        waad_window: int = 10,
        num_sinks: int = 4,
    ):
        for name, size in {"window": window, "waad_window": waad_window}.items():
            if size < 1:
                raise ValueError(f"`{name}` is {size}, but must be at least 1 token.")
        modules = find_attention_modules(model)
        self.skipped_layers: dict[int, str] = {}
        if heads is None:
            # A layer with a sliding window cannot look far back. Skipping it for all lengths keeps the signals of
            # short and long sequences comparable.
            sizes = {index: sliding_window(module) for index, module in modules.items()}
            sliding = {index: size for index, size in sizes.items() if size is not None}
            if len(sliding) < len(modules):
                self.skipped_layers = {index: f"sliding window of {size} tokens" for index, size in sliding.items()}
            candidates = [index for index in modules if index not in self.skipped_layers]
            heads = {candidates[i]: None for i in select_layers(len(candidates))}
        elif unknown := sorted(set(heads) - set(modules)):
            raise ValueError(f"`heads` names layers {unknown}, but the model has layers {list(modules)}.")
        self.window = window
        self.waad_window = waad_window
        self.num_sinks = num_sinks
        self.heads = dict(heads)
        self._modules = {index: modules[index] for index in heads}
        self._model = model

    @contextmanager
    def capture(
        self, attention_mask: torch.Tensor, rows: torch.Tensor | None = None, num_queries: int | None = None
    ) -> Iterator[AttentionCapture]:
        """
        Trace the forward passes inside the block; the last one counts. Hooks exist only inside the block.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch, keys)`):
                1 for real tokens and 0 for padding, which may be on the left, on the right or on both sides.
            rows (`torch.Tensor` of shape `(rows,)`, int64, *optional*):
                Rows of the batch to trace. Defaults to all.
            num_queries (`int`, *optional*):
                Number of last positions to trace. Defaults to all.

        Yields:
            [`AttentionCapture`]: filled when the model has run.

        Raises:
            RuntimeError: in the forward pass, if the mask does not fit the batch.
            NotImplementedError: in the forward pass, if a layer adds a learned position bias to its attention.
        """
        capture = AttentionCapture()
        with ExitStack() as stack:
            for index, module in self._modules.items():
                hooks = _LayerHooks(
                    layer=index,
                    tracer=self,
                    heads=self.heads[index],
                    key_mask=attention_mask.bool(),
                    rows=rows,
                    num_queries=num_queries,
                    capture=capture,
                )
                for handle in (
                    module.register_forward_pre_hook(hooks.enter),
                    # Also runs after exceptions, so that a failed forward pass leaves nothing behind.
                    module.register_forward_hook(hooks.leave, always_call=True),
                ):
                    stack.callback(handle.remove)
            functions = {}
            for module in self._modules.values():
                interface, name = _interface(module), cast(Any, module).config._attn_implementation
                functions[id(interface), name] = (interface, name)
            for interface, name in functions.values():
                stack.enter_context(_shown_to_hooks(interface, name))
            stack.enter_context(_without_compilation(self._model))
            yield capture


@dataclass
class _LayerHooks:
    """The hooks of one layer, and the reduction of its attention."""

    layer: int
    tracer: AttentionTracer
    heads: Sequence[int] | None
    key_mask: torch.Tensor
    rows: torch.Tensor | None
    num_queries: int | None
    capture: AttentionCapture

    def enter(self, module: Any, args: tuple) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # inside backward: gradient checkpointing repeats a forward pass that is already traced
        _RUNNING[module] = self

    def leave(self, module: Any, args: tuple, output: object) -> None:
        _RUNNING.pop(module, None)

    @torch.no_grad()
    def reduce(self, query: torch.Tensor, key: torch.Tensor, scaling: float | None, options: dict) -> None:
        num_tokens = key.shape[2]
        if query.shape[2] != num_tokens:
            return  # decoding with a KV cache: the whole response is traced later, in one pass
        if self.key_mask.shape != (query.shape[0], num_tokens):
            raise RuntimeError(
                f"Layer {self.layer} attends to {num_tokens} positions in a batch of {query.shape[0]}, but the "
                f"attention mask given to `capture()` has shape {tuple(self.key_mask.shape)}. Pass the mask of this "
                "very batch."
            )
        if options.get("position_bias") is not None:
            raise NotImplementedError(
                f"Layer {self.layer} adds a learned position bias to its attention, which the tracer does not read."
            )
        sliding_window = options.get("sliding_window")
        if sliding_window is not None and sliding_window >= num_tokens:
            sliding_window = None
        num_heads, device = query.shape[1], query.device
        if self.heads is not None and not all(0 <= head < num_heads for head in self.heads):
            raise ValueError(f"`heads` names heads {list(self.heads)} of layer {self.layer}, which has {num_heads}.")
        heads = torch.arange(num_heads) if self.heads is None else torch.as_tensor(self.heads, dtype=torch.long)
        key_heads = (heads // (num_heads // key.shape[1])).to(device)
        heads, key_mask = heads.to(device), self.key_mask.to(device)
        if self.rows is not None:
            rows = self.rows.to(device)
            query, key, key_mask = query[rows], key[rows], key_mask[rows]
        first_query = 0 if self.num_queries is None else num_tokens - self.num_queries
        sink_logits = options.get("s_aux")
        # Autocast would multiply queries and keys in half precision, despite the casts to float32.
        with torch.autocast(device.type, enabled=False):
            self.capture.layers[self.layer] = attention_statistics(
                query[:, :, first_query:][:, heads],
                key[:, key_heads],
                scaling if scaling is not None else query.shape[-1] ** -0.5,
                key_mask,
                window=self.tracer.window,
                waad_window=self.tracer.waad_window,
                num_sinks=self.tracer.num_sinks,
                sliding_window=sliding_window,
                softcap=options.get("softcap"),
                sink_logits=None if sink_logits is None else sink_logits[heads],
            )


def _interface(module: nn.Module) -> AttentionInterface:
    """The table of attention functions that the file of a module uses. Most files share one."""
    return inspect.unwrap(type(module).forward).__globals__["ALL_ATTENTION_FUNCTIONS"]


@contextmanager
def _shown_to_hooks(interface: AttentionInterface, name: str) -> Iterator[None]:
    """Temporarily pass an attention function's arguments to the hooks. It keeps its name, as masks depend on it."""
    original = interface.get(name)

    def forward(module, query, key, value, attention_mask, *args, **kwargs):
        # Eager attention is not in the table, as each file has its own.
        function = original or inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        output = function(module, query, key, value, attention_mask, *args, **kwargs)
        if module in _RUNNING:
            _RUNNING[module].reduce(query, key, kwargs.get("scaling"), kwargs)
        return output

    interface[name] = forward
    try:
        yield
    finally:
        del interface[name]
        if interface.get(name) is not original:
            interface[name] = original


def _without_compilation(model: nn.Module) -> AbstractContextManager:
    """Run a compiled model's own code for a while, as compiled code ignores hooks that were added later."""
    is_compiled = any(
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
