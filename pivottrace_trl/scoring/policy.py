"""A policy that answers prompts without a trainer: a bare transformers model."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..processes import SharedWork
from ..tracing.rollout_pass import trace_rollouts
from ..tracing.rollouts import Rollout, transformers_generator
from ..tracing.trace import ResponseTrace


_LORA = re.compile(r"(?P<module>.+)\.lora_\w+\.(?P<adapter>[^.]+)(\.weight|\.bias)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)")


class ModelPolicy:
    """
    A transformers model as a [`~scoring.survey.Policy`]. It samples from the whole vocabulary at a `temperature`, or
    answers greedily at 0. Every batch is seeded with `seed` and the number of responses before it.
    """

    temperature = 1.0  # for the entropies in traces, even if responses are greedy

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

    @property
    def weights(self) -> str:
        """See [`fingerprint_policy`]."""
        return fingerprint_policy(self._model)

    def describe(self) -> dict[str, Any]:
        """How responses are drawn, as plain values."""
        return {
            "generation": self._config.to_diff_dict(),
            "precision": str(self._model.dtype),
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
    """16 hexadecimal digits from a thousand values of each parameter. Any training step changes some of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(_sample(name, parameter))
    return digest.hexdigest()[:16]


def fingerprint_policy(model: nn.Module) -> str:
    """
    Like [`fingerprint_weights`], but for the function that the model computes. It is the same for a bare model, for
    one whose adapter adds nothing (as LoRA begins) or is inactive, and for the same values in another precision.
    Quantized weights have different values.
    """
    parameters = dict(model.named_parameters())
    if isinstance(model, PeftModel):
        parameters = _without_idle_adapters(model, parameters)
    digest = hashlib.sha256()
    for name in sorted(parameters):
        digest.update(_sample(name, parameters[name], in_full=True))
    return digest.hexdigest()[:16]


def _without_idle_adapters(model: PeftModel, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that an adapted model computes with, under the names of the bare model."""
    adapted = {}
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if found := _LORA.fullmatch(name):
            if found["adapter"] in model.active_adapters:
                parts.setdefault(f"{found['module']}.{found['adapter']}", {})[name] = parameter
        elif saved := _SAVED.fullmatch(name):  # a layer that is trained as a whole, and its original
            if saved["adapter"] in model.active_adapters:
                adapted[f"{saved['module']}.{saved['rest']}"] = parameter
        else:
            adapted.setdefault(name.replace(".original_module.", "."), parameter)
    for group in parts.values():
        # The adapter adds a product of two matrices; DoRA has a third part.
        has_zero = any(not parameter.is_meta and not parameter.any() for parameter in group.values())
        if not has_zero or len(group) != 2:
            adapted |= group
    return {name.removeprefix("base_model.model.").replace(".base_layer.", "."): p for name, p in adapted.items()}


def _sample(name: str, parameter: torch.Tensor, in_full: bool = False) -> bytes:
    """A thousand values of a parameter, in its own precision or in float32."""
    if parameter.is_meta:  # only the first process has loaded the weights
        return b"meta"
    flat = parameter.detach().reshape(-1)
    numbers = flat[:: max(1, flat.numel() // 1000)].contiguous().cpu()
    if in_full and numbers.is_floating_point():
        numbers = numbers.float()
    return f"{name} {tuple(parameter.shape)} {numbers.dtype} ".encode() + numbers.view(torch.uint8).numpy().tobytes()
