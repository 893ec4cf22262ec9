"""Prompts to responses."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from pivottrace_trl.tracing.rollouts import transformers_generator

from ..conftest import make_model


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "plain"])
def test_settings_that_a_model_ships_do_not_leak_into_generation(task_type, tokenizer):
    model = make_model("llama")
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=1)
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    expected = transformers_generator(model, tokenizer, config)(prompts)
    if task_type != "plain":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type=task_type))
    shipped = model.get_base_model() if task_type != "plain" else model
    shipped.generation_config.repetition_penalty = 3.0
    assert transformers_generator(model, tokenizer, config)(prompts) == expected
    assert shipped.generation_config.repetition_penalty == 3.0
    # The penalty is one that can be seen.
    assert (
        shipped.generate(**tokenizer.pad({"input_ids": prompts[:1]}, return_tensors="pt"), max_new_tokens=20)[
            0, 3:
        ].tolist()
        != expected[0]
    )
