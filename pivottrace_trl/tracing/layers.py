"""Finds the attention modules of a decoder, and chooses the layers to trace."""

import inspect
import math
from typing import cast

from peft import PeftModel
from torch import nn


def find_attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """
    Find the causal self-attention modules that go through the attention interface of transformers, by layer index.

    They are recognised by what they do, not by class name: a module with a `layer_idx` whose `forward` looks up its
    attention function in the interface. LoRA and bitsandbytes replace the linear layers inside, never the module.

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
    """Evenly spaced layers of the middle third (arXiv 2510.13554 represents the network by five of them)."""
    start, stop = num_layers // 3, max(num_layers // 3 + 1, (2 * num_layers + 2) // 3)
    count = min(num_selected, stop - start)
    steps = [start + round(i * (stop - 1 - start) / max(count - 1, 1)) for i in range(count)]
    return sorted(set(steps))


def middle_third(layers: list[int]) -> list[int]:
    """
    The layers that RAUQ (arXiv 2505.20045) uses: from one third of the depth to one layer past two thirds, as in its
    authors' code.
    """
    return layers[len(layers) // 3 : math.ceil(len(layers) / 3 * 2) + 1]


def sliding_window(module: nn.Module) -> int | None:
    """Number of keys that a query of an attention module sees; `None` for all."""
    if hasattr(module, "sliding_window"):
        return cast(int | None, module.sliding_window)  # models that mix both kinds of layers
    return getattr(module.config, "sliding_window", None)
