"""Everything that one forward pass shows of the responses in it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .attention_tracer import AttentionCapture, AttentionTracer
from .hidden_states import HiddenStateCapture, HiddenStateTracer
from .layers import find_attention_modules, middle_third
from .trace import ResponseTrace


@dataclass
class ResponseCapture:
    """
    What one traced forward pass showed.

    Attributes:
        attention ([`AttentionCapture`]): the heads whose long-range attention is averaged.
        newest_layers ([`AttentionCapture`]): all heads of the middle third of the layers, if wanted.
        hidden_states ([`HiddenStateCapture`]): the way through the layers, if wanted.
        response_mask (`torch.Tensor` of shape `(rows, queries)`): positions that produced response tokens.
    """

    attention: AttentionCapture
    newest_layers: AttentionCapture | None
    hidden_states: HiddenStateCapture | None
    response_mask: torch.Tensor

    def traces(
        self, entropy: torch.Tensor, log_prob: torch.Tensor, self_certainty: torch.Tensor | None = None
    ) -> list[ResponseTrace]:
        """
        Cut the capture into one trace a row.

        Args:
            entropy (`torch.Tensor` of shape `(rows, queries)`): see [`ResponseTrace`].
            log_prob (`torch.Tensor` of shape `(rows, queries)`): see [`ResponseTrace`].
            self_certainty (`torch.Tensor` of shape `(rows, queries)`, *optional*): see [`ResponseTrace`].

        Returns:
            `list[ResponseTrace]`: one per row.
        """
        signals = {
            "long_range_mass": self.attention.signal("long_range_mass"),
            "waad": self.attention.signal("waad"),
            "entropy": entropy,
            "log_prob": log_prob,
        }
        if self_certainty is not None:
            signals["self_certainty"] = self_certainty
        arrays = {name: signal.detach().float().cpu().numpy() for name, signal in signals.items()}
        masks = self.response_mask.bool().cpu().numpy()
        newest = None if self.newest_layers is None else self._newest(self.newest_layers)
        gram = None
        if self.hidden_states is not None:
            means = torch.stack(self.hidden_states.means, dim=1).double()
            gram = (means @ means.transpose(1, 2)).cpu().numpy()
        return [
            ResponseTrace(
                **{name: array[row][mask] for name, array in arrays.items()},
                newest=None if newest is None else newest[row][:, mask],
                layer_gram=None if gram is None else gram[row],
            )
            for row, mask in enumerate(masks)
        ]

    def _newest(self, capture: AttentionCapture) -> np.ndarray:
        """Of each layer and response, the head that looks most at the newest token: `(rows, layers, queries)`."""
        layers = []
        for statistics in capture.layers.values():
            newest = statistics.newest.to(self.response_mask.device)
            # The first response token has no token before it in the response.
            later = self.response_mask.bool() & (self.response_mask.cumsum(dim=1) > 1)
            head = (newest * later[:, None]).sum(dim=2).argmax(dim=1)
            layers.append(newest[torch.arange(len(newest)), head])
        return torch.stack(layers, dim=1).cpu().numpy()


class ResponseTracer:
    """
    Traces what the scores need while a model runs.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        heads (`Mapping[int, Sequence[int] | None]`, *optional*):
            Query heads per layer index whose long-range attention is averaged. Defaults to those of
            [`AttentionTracer`].
        signals (`Collection[str]`, *optional*):
            Which of [`OPTIONAL_SIGNALS`] to trace.
        window (`int`, *optional*, defaults to `16`):
            Distance in tokens from which attention counts as long-range.

    Attributes:
        skipped_layers (`dict[int, str]`): layers left out of the default heads, with the reason.

    Raises:
        ValueError: see [`AttentionTracer`].
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Mapping[int, Sequence[int] | None] | None = None,
        signals: Collection[str] = (),
        window: int = 16,
    ):
        tracer = AttentionTracer(model, heads, window=window)
        self.skipped_layers = tracer.skipped_layers
        self._newest: list[int] = []
        # Where a layer is traced whole for another signal, which of its heads are averaged.
        self._kept = tracer.heads
        if "newest" in signals:
            self._newest = middle_third(list(find_attention_modules(model)))
            traced = dict.fromkeys(self._newest) | {
                layer: kept for layer, kept in tracer.heads.items() if layer not in self._newest
            }
            tracer = AttentionTracer(model, traced, window=window)
        self._tracer = tracer
        self._hidden_states = None
        if "layer_gram" in signals or "self_certainty" in signals:
            self._hidden_states = HiddenStateTracer(model)

    @contextmanager
    def capture(
        self, attention_mask: torch.Tensor, response_mask: torch.Tensor, rows: torch.Tensor | None = None
    ) -> Iterator[ResponseCapture]:
        """
        Trace the forward pass made inside the block.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch, keys)`):
                1 for real tokens and 0 for padding.
            response_mask (`torch.Tensor` of shape `(rows, queries)`):
                Of the last positions, those that produced response tokens.
            rows (`torch.Tensor` of shape `(rows,)`, int64, *optional*):
                Rows of the batch to trace. Defaults to all.

        Yields:
            [`ResponseCapture`], to be read after the block.
        """
        empty = AttentionCapture()
        result = ResponseCapture(empty, None, None, response_mask)
        with ExitStack() as stack:
            attention = stack.enter_context(
                self._tracer.capture(attention_mask, rows=rows, num_queries=response_mask.shape[1])
            )
            if self._hidden_states is not None:
                result.hidden_states = stack.enter_context(self._hidden_states.capture(response_mask, rows))
            yield result
        chosen = {}
        for layer, kept in self._kept.items():
            if layer in attention.layers:
                is_whole = self._tracer.heads[layer] is None
                num_heads = attention.layers[layer].newest.shape[1]
                chosen[layer] = list(kept) if is_whole and kept is not None else list(range(num_heads))
        result.attention = attention.select(chosen)
        if self._newest:
            result.newest_layers = AttentionCapture({layer: attention.layers[layer] for layer in self._newest})
