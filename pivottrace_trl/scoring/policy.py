"""Policies that answer prompts without a trainer: bare transformers models."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..processes import SharedWork
from ..tracing.rollout_pass import trace_rollouts
from ..tracing.rollouts import Rollout, transformers_generator
from ..tracing.trace import ResponseTrace


class ModelPolicy:
    """
    A transformers model, see [`~scoring.survey.Policy`]. It samples at a `temperature` from the whole vocabulary, or
    answers greedily at 0, and seeds every batch with `seed` and the number of the responses before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_completion_length: int = 384,
        temperature: float = 0.0,
        batch_size: int = 32,
        seed: int = 0,
    ):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.batch_size = batch_size
        self._model, self.tokenizer, self._seed = model, tokenizer, seed
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        self._config = GenerationConfig(
            max_new_tokens=max_completion_length,
            do_sample=temperature > 0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            **sampling,
        )
        self._generate = transformers_generator(model, tokenizer, self._config)

    def tokenize(self, prompts: Sequence[str | list[dict]]) -> list[list[int]]:
        """See [`tokenize_prompts`]."""
        return tokenize_prompts(self.tokenizer, prompts)

    def generate(self, prompt_ids: list[list[int]], number: int) -> list[list[int]]:
        """One response to each prompt."""
        with torch.random.fork_rng():
            torch.manual_seed(self._seed + number * self.batch_size)
            return self._generate(prompt_ids)

    def decode(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Text of each response."""
        return self.tokenizer.batch_decode([r.completion_ids for r in rollouts], skip_special_tokens=True)

    def trace(
        self, rollouts: Sequence[Rollout], signals: Collection[str], work: SharedWork, progress: bool
    ) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
        """See [`trace_rollouts`]."""
        pad_token_id = self._config.pad_token_id
        return trace_rollouts(self._model, rollouts, pad_token_id, signals=signals, progress=progress, work=work)

    def describe(self) -> dict[str, Any]:
        """What decides the responses to given prompts, as plain values."""
        return {
            "weights": fingerprint_weights(self._model),
            "generation": self._config.to_diff_dict(),
            "batch_size": self.batch_size,
            "seed": self._seed,
        }


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | list[dict]]) -> list[list[int]]:
    """
    Tokenize prompts as the model expects them: conversations, and plain questions to a chat model, through the chat
    template; plain text to a base model as it is.
    """
    ids = []
    for prompt in prompts:
        if isinstance(prompt, str) and tokenizer.chat_template is None:
            ids.append(tokenizer(prompt)["input_ids"])
            continue
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    return ids


def fingerprint_weights(model: nn.Module) -> str:
    """16 hexadecimal digits of a thousand numbers of each parameter: any training step changes some of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # of several processes, only the first has loaded the weights
            digest.update(b"meta")
            continue
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1000)].contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
