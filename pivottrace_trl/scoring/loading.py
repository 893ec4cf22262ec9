"""Loads a model and its tokenizer from a folder or the hub."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. It is small, so a wrong name is noticed before anything large is read."""
    try:
        AutoConfig.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`model` {name} is neither a folder with a model and its tokenizer nor one of the hub: {error}"
        ) from error


def load_model(name: str, in_4bit: bool = False) -> PreTrainedModel:
    """Load a model in its own precision, or quantized with bitsandbytes (nf4)."""
    options: dict[str, Any] = {"dtype": "auto"}
    if in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return AutoModelForCausalLM.from_pretrained(name, device_map="auto", **options)
