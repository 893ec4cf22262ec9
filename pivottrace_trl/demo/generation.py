"""Fast generation for a small Llama with LoRA, without the overhead that dominates at a million parameters."""

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import linear, pad, silu
from transformers import GenerationConfig


# The cache grows by this many tokens at a time. When it is copied, answers that have ended are dropped.
_ROOM = 4
# Settings that are not supported here, with the values that have no effect.
_UNSUPPORTED = {"top_k": (None, 0), "top_p": (None, 1.0), "min_p": (None,), "repetition_penalty": (None, 1.0)}


def generate_quickly(model: Any) -> None:
    """
    Replace `generate` of a Llama with LoRA by a faster version that samples from the same distribution. Adapters are
    merged, weights with the same input are joined, equal prompts are read once, and answers that have ended are
    dropped. Random numbers are drawn in another order.

    Args:
        model ([`~peft.PeftModel`]): a small policy in full precision, on the CPU.
    """
    llama = model.get_base_model().model

    def generate(
        input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: GenerationConfig
    ) -> torch.Tensor:
        for name, values in _UNSUPPORTED.items():
            value = getattr(generation_config, name)
            if value not in values:
                raise ValueError(
                    f"`{name}={value}` is not known to the quick generation of the demo; use {values[-1]}."
                )
        with torch.inference_mode():
            completion_ids = _generate(_Llama(llama), input_ids, attention_mask, generation_config)
        return torch.cat([input_ids, completion_ids.clone()], dim=1)

    model.generate = generate


def _generate(
    model: "_Llama", input_ids: torch.Tensor, attention_mask: torch.Tensor, config: GenerationConfig
) -> torch.Tensor:
    """Token ids of the answers, of shape `(rows, tokens)`, padded on the right."""
    prompts, inverse = torch.unique(torch.stack([input_ids, attention_mask]), dim=1, return_inverse=True)
    logits = model.read(prompts[0], prompts[1], config.max_new_tokens)[inverse]
    model.keep(inverse)
    rows = torch.arange(len(input_ids))
    ends = torch.tensor(config.eos_token_id)
    completion_ids = torch.full((len(rows), config.max_new_tokens), config.pad_token_id)
    has_ended = torch.zeros(len(rows), dtype=torch.bool)
    for place in range(config.max_new_tokens):
        if config.do_sample:
            tokens = torch.multinomial(torch.softmax(logits / config.temperature, dim=-1), 1)[:, 0]
        else:
            tokens = logits.argmax(dim=-1)
        completion_ids[rows, place] = tokens.masked_fill(has_ended, config.pad_token_id)
        has_ended |= torch.isin(tokens, ends)
        if has_ended.all():
            return completion_ids[:, : place + 1]
        if place % _ROOM == _ROOM - 1:
            kept = (~has_ended).nonzero()[:, 0]
            model.keep(kept)
            rows, tokens, has_ended = rows[kept], tokens[kept], has_ended[kept]
        logits = model.add(tokens)
    return completion_ids


class _Llama:
    """The merged weights of a Llama, with its cache of keys and values."""

    def __init__(self, model: Any):
        config = model.config
        self._num_heads, self._num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_size, self._epsilon = config.head_dim, config.rms_norm_eps
        self._embedding, self._rotary = model.embed_tokens.weight, model.rotary_emb
        self._head = self._embedding * model.norm.weight
        self._layers = [_Layer(layer) for layer in model.layers]

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_more: int) -> torch.Tensor:
        """Read prompts padded on the left, and return the next logits. The cache gets room for `num_more` tokens."""
        length = input_ids.shape[1]
        # Only the distance between positions matters, so a position is simply a column, padding included.
        self._cosine, self._sine = self._rotary(self._embedding, torch.arange(length + num_more)[None])
        # Not minus infinity, as a padding position sees no keys (and no query sees it).
        self._bias = torch.zeros(attention_mask.shape).masked_fill(attention_mask == 0, -1e9)[:, None, None]
        for layer in self._layers:
            layer.keys, layer.values = torch.empty(2, len(input_ids), self._num_kv_heads, length, self._head_size)
        self._length = 0
        return self._run(input_ids, self._bias + torch.full((length, length), -1e9).triu(1))

    def add(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token in every row, and return the next logits."""
        return self._run(tokens[:, None], self._bias[..., : self._length + 1])

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with these rows, in this order. A row may occur several times."""
        self._bias = pad(self._bias[rows, :, :, : self._length], (0, _ROOM))
        for layer in self._layers:
            layer.keys = pad(layer.keys[rows, :, : self._length], (0, 0, 0, _ROOM))
            layer.values = pad(layer.values[rows, :, : self._length], (0, 0, 0, _ROOM))

    def _run(self, token_ids: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        start, self._length = self._length, self._length + token_ids.shape[1]
        cosine, sine = self._cosine[:, None, start : self._length], self._sine[:, None, start : self._length]
        hidden = self._embedding[token_ids]
        for layer in self._layers:
            heads = linear(self._normalize(hidden), layer.qkv)
            heads = heads.view(*token_ids.shape, -1, self._head_size).transpose(1, 2)
            turned, values = heads.split([self._num_heads + self._num_kv_heads, self._num_kv_heads], dim=1)
            first, second = turned.chunk(2, dim=-1)
            turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
            layer.keys[:, :, start : self._length] = turned[:, self._num_heads :]
            layer.values[:, :, start : self._length] = values
            attended = self._attend(turned[:, : self._num_heads], layer, bias)
            hidden = hidden + linear(attended.transpose(1, 2).flatten(2), layer.output)
            gate, up = linear(self._normalize(hidden), layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + linear(silu(gate) * up, layer.down)
        return linear(self._normalize(hidden[:, -1]), self._head)

    def _attend(self, queries: torch.Tensor, layer: "_Layer", bias: torch.Tensor) -> torch.Tensor:
        keys, values = layer.keys[:, :, : self._length], layer.values[:, :, : self._length]
        # Queries that share keys form one matrix.
        scores = queries.reshape(*keys.shape[:2], -1, self._head_size) @ keys.transpose(2, 3)
        weights = torch.softmax(scores.view(*queries.shape[:3], -1) + bias, dim=-1)
        return (weights.view(scores.shape) @ values).view(queries.shape)

    def _normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + self._epsilon)


class _Layer:
    """
    Merged weights of one layer, with the norms and scales folded in, and its cache of shape
    `(rows, heads, positions, head_size)`.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        queries = _merge(attention.q_proj) * attention.scaling
        qkv = torch.cat([queries, _merge(attention.k_proj), _merge(attention.v_proj)])
        self.qkv = qkv * layer.input_layernorm.weight
        gate_up = torch.cat([_merge(mlp.gate_proj), _merge(mlp.up_proj)])
        self.gate_up = gate_up * layer.post_attention_layernorm.weight
        self.output, self.down = _merge(attention.o_proj), _merge(mlp.down_proj)


def _merge(projection: Any) -> torch.Tensor:
    """Weight of a linear layer, including its adapters."""
    if not isinstance(projection, BaseTunerLayer):
        return projection.weight
    weight = cast(Any, projection).get_base_layer().weight
    for adapter in projection.active_adapters:
        weight = weight + cast(Any, projection).get_delta_weight(adapter)
    return weight
