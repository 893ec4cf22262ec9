"""Hidden states read by hooks against `output_hidden_states=True`."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pivottrace_trl.tracing.hidden_states import HiddenStateTracer

from ..conftest import ARCHITECTURES, make_model
from .test_tracing import batch_of


def num_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("has_lora", [False, True])
def test_means_over_the_response(architecture, has_lora):
    model = make_model(architecture, attn_implementation="eager")
    if has_lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    batch = batch_of()
    response_mask = batch["attention_mask"][:, -20:].clone()
    response_mask[:, -1] = 0
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True, use_cache=False).hidden_states
        before = num_hooks(model)  # transformers leaves hooks of its own
        with HiddenStateTracer(model).capture(response_mask) as capture:
            model(**batch, use_cache=False)
    assert num_hooks(model) == before
    assert len(capture.means) == len(expected)
    mask = response_mask[..., None].float()
    for mean, states in zip(capture.means, expected, strict=True):
        assert torch.allclose(mean, (states[:, -20:] * mask).sum(1) / mask.sum(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(capture.last, expected[-1][:, -20:])


def test_some_rows_only_and_nothing_in_backward():
    model = make_model("llama").train()
    model.gradient_checkpointing_enable()
    before = num_hooks(model)
    batch = batch_of()
    rows = torch.tensor([2, 0])
    response_mask = batch["attention_mask"][rows, -20:]
    with HiddenStateTracer(model).capture(response_mask, rows) as capture:
        outputs = model(**batch, use_cache=False, output_hidden_states=False)
        seen = [mean.clone() for mean in capture.means]
        outputs.logits.float().sum().backward()
    assert len(seen) == len(capture.means) == 7 and capture.last.shape[:2] == (2, 20)
    assert all(torch.equal(first, second) for first, second in zip(seen, capture.means, strict=True))
    assert not capture.last.requires_grad
    with pytest.raises(RuntimeError, match="stop"), HiddenStateTracer(model).capture(response_mask, rows):
        raise RuntimeError("stop")
    assert num_hooks(model) == before
