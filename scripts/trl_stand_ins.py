"""
Local stand-ins for the models and the data set that TRL's own tests load from the hub, in the layout of the hub's
cache, so that `from_pretrained` finds them by their public name without a network.
"""

from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import PreTrainedTokenizerFast, set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)


ORGANISATION = "trl-internal-testing"
# A vocabulary as large as Qwen's makes every test ten times slower, and serves one: it mocks `generate` with its ids.
VOCABULARY_SIZE = 256
PAD_ID, EOS_ID = 0, 1
_SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
_CHARACTERS = "0123456789+-*/=?.,;:!'\"()[]{}<>|_\\ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ#$\n"
_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Name on the hub -> what this architecture needs besides the sizes. The class stands in the name.
MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": {},
    "tiny-Qwen3ForCausalLM": {"head_dim": 2},
    "tiny-LlamaForCausalLM-3.2": {},
    "tiny-MistralForCausalLM-0.2": {},
    "tiny-Gemma2ForCausalLM": {"head_dim": 2, "query_pre_attn_scalar": 2},
    "tiny-Cohere2ForCausalLM": {},
    "tiny-GptOssForCausalLM": {"head_dim": 2, "num_local_experts": 4, **_EXPERTS},
    "tiny-Qwen3MoeForCausalLM": {"head_dim": 2, "num_experts": 4, **_EXPERTS},
    "tiny-Glm4MoeForCausalLM": {
        "head_dim": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        **_EXPERTS,
    },
    "tiny-Qwen2ForSequenceClassification-2.5": {"num_labels": 1},
    "tiny-Qwen3ForSequenceClassification": {"num_labels": 1, "head_dim": 2},
    "tiny-LlamaForSequenceClassification-3.2": {"num_labels": 1},
}
DATA = f"{ORGANISATION}/zen"
DATA_CONFIGS = ("standard_prompt_only", "conversational_prompt_only")
# As many rows as the data set on the hub has.
_NUM_ROWS = {"train": 17, "test": 2}


def make_models(hub: Path) -> None:
    """
    Write all models and their tokenizer.

    Args:
        hub (`Path`):
            Folder that becomes the hub's cache (`HF_HUB_CACHE`).
    """
    classes: list[Any] = [*MODEL_FOR_CAUSAL_LM_MAPPING.values(), *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.values()]
    by_name: dict[str, Any] = {kind.__name__: kind for kind in classes if isinstance(kind, type)}
    for name, settings in MODELS.items():
        folder = hub / f"models--{ORGANISATION}--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("stand-in")
        model_class = by_name[name.split("-")[1]]
        set_seed(0)
        model_class(model_class.config_class(**_SIZES, **settings)).save_pretrained(folder / "snapshots" / "stand-in")
        template = "qwen3.jinja" if "Qwen3" in name else "qwen2_5.jinja"
        _make_tokenizer(template).save_pretrained(folder / "snapshots" / "stand-in")


def _make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a character, and made-up words for the other ids, so that whatever a random model says has a text."""
    tokens = [*_SPECIAL, *_CHARACTERS]
    tokens += [f" word{i}" for i in range(len(tokens), VOCABULARY_SIZE)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[PAD_ID],
        eos_token=_SPECIAL[EOS_ID],
        additional_special_tokens=["<|im_start|>"],
        # The templates that TRL ships, from where it is installed.
        chat_template=(Path(trl.__file__).parent / "chat_templates" / template).read_text(),
    )


def make_data(folder: Path) -> None:
    """
    Write the data set, one Parquet file for each configuration and split.

    Args:
        folder (`Path`):
            Where to write `<configuration>/<split>.parquet`.
    """
    for config in DATA_CONFIGS:
        for split, num_rows in _NUM_ROWS.items():
            texts = [f"What is {i} + {len(split)}?" for i in range(num_rows)]
            is_plain = config.startswith("standard")
            prompts = texts if is_plain else [[{"role": "user", "content": text}] for text in texts]
            (folder / config).mkdir(parents=True, exist_ok=True)
            Dataset.from_dict({"prompt": prompts}).to_parquet(folder / config / f"{split}.parquet")
