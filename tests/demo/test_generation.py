"""The quick generation of demo and reproduction: what the model's own `generate` gives."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH
from pivottrace_trl.demo.generation import generate_quickly


SETTINGS = {"max_new_tokens": 80, "eos_token_id": [1], "pad_token_id": 0, "top_k": 0, "top_p": 1.0}


@pytest.fixture
def policy():
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return model


@pytest.fixture
def batch():
    """Prompts of several lengths, each twice, as in a batch of groups."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    prompts = make_pool(12, seed=0)["prompt"]
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    padded = tokenizer.pad(
        {"input_ids": [row for row in ids for _ in range(2)]}, padding_side="left", return_tensors="pt"
    )
    return dict(padded)


def test_the_likeliest_answers_are_those_of_the_model(policy, batch):
    config = GenerationConfig(**SETTINGS, do_sample=False)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    expected = policy.generate(**batch, generation_config=config)
    generate_quickly(policy)
    assert torch.equal(policy.generate(**batch, generation_config=config), expected)
    assert (expected[:, -1] == 0).any() and (expected[:, -1] == 1).any()
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_answers_are_drawn_by_the_model(policy, batch):
    """The first token and the one behind it, each against its distribution, by 4,000 draws for one prompt."""
    config = GenerationConfig(**SETTINGS | {"max_new_tokens": 2}, do_sample=True, temperature=4.0)
    prompt = {name: rows[:1] for name, rows in batch.items()}
    generate_quickly(policy)
    torch.manual_seed(0)
    many = {name: rows.expand(4000, -1) for name, rows in prompt.items()}
    drawn = policy.generate(**many, generation_config=config)[:, -2:]
    with torch.no_grad():
        first = torch.softmax(policy(**prompt).logits[0, -1] / 4.0, dim=-1)
        token = int(first.argmax())
        longer = torch.cat([prompt["input_ids"], torch.tensor([[token]])], dim=1)
        mask = torch.cat([prompt["attention_mask"], torch.tensor([[1]])], dim=1)
        second = torch.softmax(policy(input_ids=longer, attention_mask=mask).logits[0, -1] / 4.0, dim=-1)
    for probabilities, tokens in ((first, drawn[:, 0]), (second, drawn[drawn[:, 0] == token, 1])):
        shares = torch.bincount(tokens, minlength=len(probabilities)) / len(tokens)
        assert (shares - probabilities).abs().max() < 4 * (0.25 / len(tokens)) ** 0.5
    assert 0.2 < first.max() < 0.9


def test_it_says_what_it_cannot_do(policy, batch):
    generate_quickly(policy)
    with pytest.raises(ValueError, match="`top_k=50` is not known to the quick generation of the demo; use 0"):
        policy.generate(**batch, generation_config=GenerationConfig(**SETTINGS | {"top_k": 50}, do_sample=True))
