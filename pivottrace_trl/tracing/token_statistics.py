"""Computes statistics of each token from logits. Only tensors, no model."""

from dataclasses import dataclass

import torch

from .attention import block_numel


# Replaces a log-probability of minus infinity, to avoid 0 * -inf.
_RULED_OUT = -1e4


@dataclass(frozen=True)
class TokenStatistics:
    """
    Statistics of the distributions from which the tokens of a batch were drawn, in nats, as float32 tensors of shape
    `(batch, tokens)`. `entropy` is that of the distribution. `log_prob` is the log-probability of the drawn token.
    `self_certainty` is the divergence of the uniform distribution from the model's, `-mean_v log p_v - log V` for a
    vocabulary of size `V` (arXiv 2502.18581); larger = surer.
    """

    entropy: torch.Tensor
    log_prob: torch.Tensor
    self_certainty: torch.Tensor | None


@torch.no_grad()
def token_statistics(logits: torch.Tensor, token_ids: torch.Tensor, temperature: float) -> TokenStatistics:
    """
    Reduce logits to three numbers per token.

    Args:
        logits (`torch.Tensor` of shape `(batch, tokens, vocabulary)`):
            Logits at the positions that produced the tokens.
        token_ids (`torch.Tensor` of shape `(batch, tokens)`, int64):
            The tokens that were drawn.
        temperature (`float`):
            Temperature at which they were drawn.

    Returns:
        [`TokenStatistics`]
    """
    size = logits.shape[-1]
    # A float32 copy of all logits would be the largest tensor of the whole pass, so take a few tokens at a time.
    num_tokens = max(1, block_numel(logits.device) // size)
    blocks = zip(logits.flatten(0, 1).split(num_tokens), token_ids.flatten().split(num_tokens), strict=True)
    entropy, log_prob, self_certainty = [], [], []
    for block, ids in blocks:
        log_probabilities = (block.float() / temperature).log_softmax(dim=-1).clamp_(min=_RULED_OUT)
        log_prob.append(log_probabilities.gather(-1, ids[:, None])[:, 0])
        # Tokens with a logit of minus infinity (padding of the vocabulary) are left out of the uniform distribution.
        is_possible = log_probabilities > _RULED_OUT
        num_possible = is_possible.sum(dim=-1)
        self_certainty.append(-(log_probabilities * is_possible).sum(dim=-1) / num_possible - num_possible.log())
        entropy.append(-(log_probabilities.exp() * log_probabilities).sum(dim=-1))
    return TokenStatistics(*(torch.cat(parts).view(logits.shape[:2]) for parts in (entropy, log_prob, self_certainty)))
