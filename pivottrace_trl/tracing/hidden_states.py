"""Read the way of the hidden states through the layers with forward hooks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .layers import find_attention_modules


@dataclass
class HiddenStateCapture:
    """
    What one forward pass recorded.

    Attributes:
        means (`list[torch.Tensor]`):
            Hidden state of each response averaged over its tokens: as it enters the first layer, then behind each
            layer, the last one normalised as the head of the model sees it; each of shape `(rows, hidden_size)`,
            float32.
        last (`torch.Tensor` of shape `(rows, queries, hidden_size)`):
            Hidden states as the head of the model sees them; `None` before the forward pass.
    """

    means: list[torch.Tensor] = field(default_factory=list)
    last: torch.Tensor | None = None


class HiddenStateTracer:
    """
    Averages the hidden states of responses while a model runs. Hooks exist only during a capture.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.

    Raises:
        ValueError: if the model has no attention module by which its layers are found.
    """

    def __init__(self, model: nn.Module):
        by_module = {module: name for name, module in model.named_modules()}
        attention = [by_module[module] for module in find_attention_modules(model).values()]
        # `decoder.layers.3.self_attn`: the module that holds the attention is a layer, what holds the list is the
        # backbone, whose output has gone through the last normalisation.
        self._layers = [model.get_submodule(name.rpartition(".")[0]) for name in attention]
        self._backbone = model.get_submodule(attention[0].rsplit(".", 3)[0])

    @contextmanager
    def capture(self, response_mask: torch.Tensor, rows: torch.Tensor | None = None) -> Iterator[HiddenStateCapture]:
        """
        Record the forward pass made inside the block; the last one counts.

        Args:
            response_mask (`torch.Tensor` of shape `(rows, queries)`):
                Of the last positions, those that produced response tokens.
            rows (`torch.Tensor` of shape `(rows,)`, int64, *optional*):
                Rows of the batch to record. Defaults to all.

        Yields:
            [`HiddenStateCapture`], filled when the model has run.
        """
        capture = HiddenStateCapture()

        def shown(hidden_states: torch.Tensor) -> torch.Tensor:
            hidden_states = hidden_states.detach()
            if rows is not None:
                hidden_states = hidden_states[rows.to(hidden_states.device)]
            return hidden_states[:, -response_mask.shape[1] :]

        def add(hidden_states: torch.Tensor) -> None:
            states = shown(hidden_states)
            mask = response_mask.to(states.device, torch.float32)[..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            capture.means.append(means.to(response_mask.device))

        def enter_first(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if _is_backward():
                return
            capture.means.clear()
            add(args[0] if args else kwargs["hidden_states"])

        def leave_layer(module: nn.Module, args: tuple, output: Any) -> None:
            if not _is_backward():
                add(output[0] if isinstance(output, tuple) else output)

        def leave_backbone(module: nn.Module, args: tuple, output: Any) -> None:
            hidden_states = output[0] if isinstance(output, tuple) else output.last_hidden_state
            add(hidden_states)
            capture.last = shown(hidden_states)

        with ExitStack() as stack:
            handles = [self._layers[0].register_forward_pre_hook(enter_first, with_kwargs=True)]
            handles += [layer.register_forward_hook(leave_layer) for layer in self._layers[:-1]]
            handles += [self._backbone.register_forward_hook(leave_backbone)]
            for handle in handles:
                stack.callback(handle.remove)
            yield capture


def _is_backward() -> bool:
    """Gradient checkpointing repeats forward passes, which were recorded already, inside backward."""
    return torch._C._current_graph_task_id() != -1
