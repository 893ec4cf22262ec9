"""Reads the hidden states of all layers with forward hooks."""

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
    Hidden states that hooks collected during one forward pass. `means` are averages over the tokens of each response,
    of shape `(rows, hidden_size)`: one for the input of the first layer and one for the output of each layer, the last
    one normalised. `last` are the final states, of shape `(rows, queries, hidden_size)`, as the model's head sees
    them.
    """

    means: list[torch.Tensor] = field(default_factory=list)
    last: torch.Tensor | None = None


class HiddenStateTracer:
    """Averages the hidden states of responses while a model runs. Hooks exist only inside a capture."""

    def __init__(self, model: nn.Module):
        by_module = {module: name for name, module in model.named_modules()}
        attention = [by_module[module] for module in find_attention_modules(model).values()]
        # In `decoder.layers.3.self_attn`, the module that holds the attention is a layer, and the module that holds
        # the list of layers is the backbone, whose output is normalised.
        self._layers = [model.get_submodule(name.rpartition(".")[0]) for name in attention]
        self._backbone = model.get_submodule(attention[0].rsplit(".", 3)[0])

    @contextmanager
    def capture(self, response_mask: torch.Tensor, rows: torch.Tensor | None = None) -> Iterator[HiddenStateCapture]:
        """
        Trace the forward pass inside the block, for all rows of the batch or for `rows`. The last pass counts. The
        `response_mask`, of shape `(rows, queries)`, marks which of the last positions produced response tokens.
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
    """Whether this is the backward pass, in which gradient checkpointing repeats forward passes that are traced."""
    return torch._C._current_graph_task_id() != -1
