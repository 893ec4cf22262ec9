"""What is known of one response."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ResponseTrace:
    """
    What one pass over a rollout showed, one number per response token. Entry `t` belongs to the position that
    produced response token `t`. Arrays are float32. The fields from `self_certainty` on are `None` unless a score
    needs them.

    Attributes:
        long_range_mass (`np.ndarray` of shape `(num_tokens,)`):
            Attention probability further back than the window, averaged over the traced heads.
        waad (`np.ndarray` of shape `(num_tokens,)`):
            Windowed average attention distance in tokens (arXiv 2510.13554), averaged over the traced heads.
        entropy (`np.ndarray` of shape `(num_tokens,)`):
            Entropy in nats of the distribution from which the token was drawn.
        log_prob (`np.ndarray` of shape `(num_tokens,)`):
            Log-probability of the token in nats.
        self_certainty (`np.ndarray` of shape `(num_tokens,)`):
            Divergence in nats of the uniform distribution from the model's, see [`TokenStatistics`].
        newest (`np.ndarray` of shape `(num_layers, num_tokens)`):
            Attention on the newest token while the next one is produced, in the layers of the middle third, of the
            head in each that pays most of it in this response (RAUQ, arXiv 2505.20045).
        layer_gram (`np.ndarray` of shape `(num_layers + 1, num_layers + 1)`, float64):
            Inner products between the layers of the hidden states averaged over the response, from the embeddings to
            the last layer (normalised): all lengths and angles of their way through the layers.
        agreement (`float`):
            Share of several responses to the prompt that give the majority answer.
    """

    long_range_mass: np.ndarray
    waad: np.ndarray
    entropy: np.ndarray
    log_prob: np.ndarray
    self_certainty: np.ndarray | None = None
    newest: np.ndarray | None = None
    layer_gram: np.ndarray | None = None
    agreement: float | None = None

    def __len__(self) -> int:
        return len(self.long_range_mass)

    def read(self, name: str) -> Any:
        """
        Read an optional field.

        Args:
            name (`str`): one of [`OPTIONAL_SIGNALS`].

        Returns:
            Its value.

        Raises:
            ValueError: if it was not traced.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"`{name}` was not traced. A score that reads it names it in `needs`; `trace_rollouts` takes it in "
                "`signals`."
            )
        return value


OPTIONAL_SIGNALS = frozenset({"self_certainty", "newest", "layer_gram", "agreement"})
"""Fields of [`ResponseTrace`] that are traced only where a score needs them."""
