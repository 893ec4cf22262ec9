"""Collects all signals of the responses in one forward pass."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .attention_tracer import AttentionCapture, AttentionTracer
from .hidden_states import HiddenStateCapture, HiddenStateTracer
from .layers import find_attention_modules, middle_third
from .token_statistics import TokenStatistics
from .trace import ResponseTrace


class ResponseTracer:
    """
    Traces the signals that scores need while a model runs on responses. `heads` are those whose long-range attention
    is averaged, by default all that an [`AttentionTracer`] traces. `signals` are the [`OPTIONAL_SIGNALS`] to trace.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Mapping[int, Sequence[int] | None] | None = None,
        signals: Collection[str] = (),
        window: int = 16,
    ):
        attention = AttentionTracer(model, heads, window=window)
        self.skipped_layers = attention.skipped_layers
        self.signals = frozenset(signals)
        # RAUQ chooses among all heads of its layers, so all of them are traced.
        self.newest_layers = middle_third(list(find_attention_modules(model))) if "newest" in signals else []
        # Heads to average, by index among the traced ones; `None` for all.
        self.averaged = {
            layer: kept if layer in self.newest_layers else None for layer, kept in attention.heads.items()
        }
        if self.newest_layers:
            traced = {**attention.heads, **dict.fromkeys(self.newest_layers)}
            attention = AttentionTracer(model, traced, window=window)
        self._attention = attention
        needs_hidden_states = self.signals & {"layer_gram", "self_certainty"}
        self._hidden_states = HiddenStateTracer(model) if needs_hidden_states else None

    @contextmanager
    def capture(
        self, attention_mask: torch.Tensor, response_mask: torch.Tensor, rows: torch.Tensor | None = None
    ) -> Iterator["ResponseCapture"]:
        """
        Trace the forward pass inside the block, for all rows of the batch or for `rows`. The `response_mask`, of shape
        `(rows, queries)`, marks which of the last positions produced response tokens.
        """
        with ExitStack() as stack:
            attention = stack.enter_context(
                self._attention.capture(attention_mask, rows=rows, num_queries=response_mask.shape[1])
            )
            hidden_states = None
            if self._hidden_states is not None:
                hidden_states = stack.enter_context(self._hidden_states.capture(response_mask, rows))
            yield ResponseCapture(self, response_mask, attention, hidden_states)


@dataclass(frozen=True)
class ResponseCapture:
    """Signals of the responses in one forward pass, available when the model has run."""

    tracer: ResponseTracer
    response_mask: torch.Tensor
    attention: AttentionCapture
    hidden_states: HiddenStateCapture | None

    def traces(
        self, statistics: TokenStatistics, heads: Mapping[int, Sequence[int] | None] | None = None
    ) -> list[ResponseTrace]:
        """
        Cut the capture and the statistics of the same positions, of shape `(rows, queries)`, into one trace per row.
        If the tracer averages whole layers, `heads` may choose some of their heads now.
        """
        averaged = self.tracer.averaged if heads is None else heads
        signals = {
            "long_range_mass": self.attention.signal("long_range_mass", averaged),
            "waad": self.attention.signal("waad", averaged),
            "entropy": statistics.entropy,
            "log_prob": statistics.log_prob,
        }
        if "self_certainty" in self.tracer.signals and statistics.self_certainty is not None:
            signals["self_certainty"] = statistics.self_certainty
        arrays = {name: signal.detach().float().cpu().numpy() for name, signal in signals.items()}
        masks = self.response_mask.bool().cpu().numpy()
        newest = self._newest() if self.tracer.newest_layers else None
        gram = None
        if "layer_gram" in self.tracer.signals and self.hidden_states is not None:
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

    def _newest(self) -> np.ndarray:
        """For each layer and response, attention of the head that looks most at the newest token, of shape
        `(rows, layers, queries)`."""
        # The first response token has no token before it in the response.
        later = self.response_mask.bool() & (self.response_mask.cumsum(dim=1) > 1)
        layers = []
        for layer in self.tracer.newest_layers:
            newest = self.attention.layers[layer].newest.to(self.response_mask.device)
            head = (newest * later[:, None]).sum(dim=2).argmax(dim=1)
            layers.append(newest[torch.arange(len(newest)), head])
        return torch.stack(layers, dim=1).cpu().numpy()
