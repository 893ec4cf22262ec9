"""Traced attention against `output_attentions=True` of an eager copy, and hooks that leave nothing behind."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, MambaConfig, MambaForCausalLM

from pivottrace_trl import AttentionTracer, Rollout, trace_rollouts
from pivottrace_trl.rollouts import choose_local_heads
from pivottrace_trl.tracing import find_attention_modules, select_layers

from .conftest import ARCHITECTURES, LORA, make_model


WINDOW, NUM_SINKS = 8, 2


def batch_of(lengths=(40, 25, 33), width=44) -> dict[str, torch.Tensor]:
    """Rows with padding on both sides."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        start = (width - length) // 2
        input_ids[row, start : start + length] = torch.randint(4, 100, (length,), generator=generator)
        attention_mask[row, start : start + length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def reference(model, batch, layer):
    """Long-range mass and span from the full attention map of one layer, in float64."""
    with torch.no_grad():
        attention = model(**batch, output_attentions=True, use_cache=False).attentions[layer].double()
    mask = batch["attention_mask"].bool()
    position = torch.arange(mask.shape[1])
    distance = (position[:, None] - position[None, :]).clamp(min=0)
    is_sink = mask & (mask.long().cumsum(1) <= NUM_SINKS)
    far = (distance >= WINDOW) & ~is_sink[:, None, None, :] & mask[:, None, None, :]
    attention = attention * mask[:, None, None, :]
    return (attention * far).sum(-1) * mask[:, None], (attention * distance).sum(-1) * mask[:, None]


def traced(model, batch, heads=None):
    tracer = AttentionTracer(model, heads=heads, window=WINDOW, num_sinks=NUM_SINKS)
    with torch.no_grad(), tracer.capture(batch["attention_mask"]) as capture:
        output = model(**batch, use_cache=False).logits
    return capture, output


def num_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_full_attention_map(name, implementation):
    model, eager = make_model(name, attn_implementation=implementation), make_model(name, attn_implementation="eager")
    batch = batch_of()
    before = num_hooks(model)
    with torch.no_grad():
        plain = model(**batch, use_cache=False).logits
    capture, output = traced(model, batch)
    assert torch.equal(output, plain)
    assert num_hooks(model) == before
    assert list(capture.long_range_mass) == select_layers(6) == [2, 3]
    for layer in capture.long_range_mass:
        mass, span = reference(eager, batch, layer)
        assert (capture.long_range_mass[layer] - mass).abs().max() < 1e-5
        assert (capture.spans[layer] - span).abs().max() < 1e-4
        # Heads differ and attention does reach back: the comparison is not one of zeros.
        assert mass.std() > 0.05 and mass.max() > 0.5


def test_flex_attention():
    batch = batch_of()
    capture, _ = traced(make_model("llama", attn_implementation="flex_attention"), batch)
    eager = make_model("llama", attn_implementation="eager")
    for layer, mass in capture.long_range_mass.items():
        assert (mass - reference(eager, batch, layer)[0]).abs().max() < 1e-5


def test_bfloat16():
    batch = batch_of()
    model = make_model("llama").to(torch.bfloat16)
    eager = make_model("llama", attn_implementation="eager").to(torch.bfloat16)
    capture, _ = traced(model, batch)
    for layer, mass in capture.long_range_mass.items():
        # The reference rounds its attention map to bfloat16 before it is summed.
        assert (mass - reference(eager, batch, layer)[0]).abs().max() < 5e-3


def test_statistics_stay_in_float32_under_autocast():
    batch, model = batch_of(), make_model("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        capture, _ = traced(model, batch)
    eager = make_model("llama", attn_implementation="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = reference(eager, batch, 2)[0]
    assert capture.long_range_mass[2].dtype == torch.float32
    assert (capture.long_range_mass[2] - expected).abs().max() < 5e-3


@pytest.mark.parametrize("disable", [False, True])
def test_lora_is_seen(disable):
    batch = batch_of()
    torch.manual_seed(0)
    model = get_peft_model(make_model("llama"), LORA)
    torch.manual_seed(0)
    eager = get_peft_model(make_model("llama", attn_implementation="eager"), LORA)
    base, _ = traced(make_model("llama"), batch)
    if disable:
        with model.disable_adapter(), eager.disable_adapter():
            capture, _ = traced(model, batch)
            expected = reference(eager, batch, 2)[0]
    else:
        capture, _ = traced(model, batch)
        expected = reference(eager, batch, 2)[0]
    assert (capture.long_range_mass[2] - expected).abs().max() < 1e-5
    differs = (capture.long_range_mass[2] - base.long_range_mass[2]).abs().max() > 1e-2
    assert differs != disable


@pytest.mark.bnb
@pytest.mark.parametrize("with_lora", [False, True])
def test_4bit(with_lora, tmp_path):
    from transformers import AutoModelForCausalLM

    make_model("llama-64").save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    options = {"quantization_config": config, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, **options, attn_implementation="eager")
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    if with_lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
        torch.manual_seed(0)
        eager = get_peft_model(eager, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
    batch = batch_of()
    capture, _ = traced(model, batch)
    full, _ = traced(make_model("llama-64"), batch)
    for layer, mass in capture.long_range_mass.items():
        assert (mass - reference(eager, batch, layer)[0]).abs().max() < 1e-4
        assert (mass - full.long_range_mass[layer]).abs().max() > 1e-3  # quantization is not a no-op


def test_gemma2_softcap_and_sliding_layers():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    def make(implementation):
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=12, attn_logit_softcapping=0.5, query_pre_attn_scalar=8,
            pad_token_id=0, attn_implementation=implementation,
        )  # fmt: skip
        model = Gemma2ForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(6.0)
        return model

    model, batch = make("eager"), batch_of()
    capture, _ = traced(model, batch)
    assert list(capture.long_range_mass) == [3]  # layers alternate, the even ones slide
    assert "sliding window of 12" in capture.skipped_layers[2]
    assert (capture.long_range_mass[3] - reference(model, batch, 3)[0]).abs().max() < 1e-5


def test_gpt_oss_sink_logits_take_part_in_the_denominator():
    from pivottrace_trl.tracing import attention_statistics

    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 20, 8, generator=generator).unbind(0)
    sinks = torch.tensor([0.5, -1.0, 2.0])
    mask = torch.ones(1, 20, dtype=torch.bool)
    mass, _ = attention_statistics(query, key, 0.3, mask, ~mask, 4, sink_logits=sinks)
    logits = (query @ key.transpose(2, 3) * 0.3).masked_fill(torch.ones(20, 20).triu(1).bool(), float("-inf"))
    full = torch.cat([logits, sinks.view(1, 3, 1, 1).expand(1, 3, 20, 1)], dim=-1).softmax(-1)[..., :-1]
    distance = torch.arange(20)[:, None] - torch.arange(20)[None, :]
    assert torch.allclose(mass, (full * (distance >= 4)).sum(-1), atol=1e-6)


def test_long_sequences_are_chunked_exactly():
    model, eager = make_model("llama"), make_model("llama", attn_implementation="eager")
    batch = batch_of(lengths=(250, 190), width=256)
    capture, _ = traced(model, batch)
    assert (capture.long_range_mass[3] - reference(eager, batch, 3)[0]).abs().max() < 1e-5


def test_chosen_heads_only():
    model, batch = make_model("qwen2"), batch_of()
    everything, _ = traced(model, batch)
    capture, _ = traced(model, batch, heads={2: [3, 1], 3: [0]})
    assert torch.equal(capture.long_range_mass[2], everything.long_range_mass[2][:, [3, 1]])
    expected = torch.cat([everything.long_range_mass[2][:, [3, 1]], everything.long_range_mass[3][:, [0]]], dim=1)
    assert torch.allclose(capture.signal(), expected.mean(dim=1))


def test_exceptions_leave_nothing_behind():
    model, batch = make_model("llama"), batch_of()
    module = model.model.layers[3].self_attn
    config = module.config

    def fail(*args):
        raise ZeroDivisionError

    handle = module.o_proj.register_forward_pre_hook(fail)
    before = num_hooks(model)
    with pytest.raises(ZeroDivisionError):
        traced(model, batch)
    assert num_hooks(model) == before
    assert module.config is config
    handle.remove()
    capture, _ = traced(model, batch)
    assert set(capture.long_range_mass) == {2, 3}


def test_models_without_softmax_attention_are_refused_by_name():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(ValueError, match="MambaForCausalLM has no attention module that can be read"):
        find_attention_modules(model)
    with pytest.raises(ValueError, match="Linear has no attention module"):
        find_attention_modules(nn.Linear(2, 2))


def test_bad_arguments():
    with pytest.raises(ValueError, match="window.*0"):
        AttentionTracer(make_model("llama"), window=0)
    with pytest.raises(ValueError, match=r"layers \[9\]"):
        AttentionTracer(make_model("llama"), heads={9: [0]})
    tracer, batch = AttentionTracer(make_model("llama")), batch_of()
    with tracer.capture(batch["attention_mask"]) as capture, pytest.raises(RuntimeError, match="no forward pass ran"):
        capture.signal()
    model = make_model("llama")
    wrong = batch["attention_mask"][:1]
    with AttentionTracer(model).capture(wrong), pytest.raises(RuntimeError, match="Pass the mask of this very batch"):
        model(**batch)


@pytest.mark.parametrize(("num_layers", "layers"), [(1, [0]), (2, [0, 1]), (6, [2, 3]), (24, [8, 10, 12, 13, 15])])
def test_middle_layers(num_layers, layers):
    assert select_layers(num_layers) == layers


def test_traces_of_rollouts_do_not_depend_on_batching():
    model = make_model("qwen2")
    generator = torch.Generator().manual_seed(1)

    def ids(n):
        return torch.randint(4, 100, (n,), generator=generator).tolist()

    rollouts = [Rollout(ids(p), ids(c)) for p, c in [(12, 30), (5, 44), (20, 3), (9, 60), (30, 18)]]
    rollouts.insert(2, Rollout(ids(6), [1]))  # nothing but the end
    heads = choose_local_heads(model, rollouts, pad_token_id=0)
    assert sum(map(len, heads.values())) == round(0.3 * 2 * 4)
    together = trace_rollouts(model, rollouts, heads, 0, window=WINDOW, progress=False)
    alone = [trace_rollouts(model, [r], heads, 0, window=WINDOW, progress=False)[0] for r in rollouts]
    assert [len(trace) for trace in together] == [30, 44, 0, 3, 60, 18]
    for first, second in zip(together, alone):
        assert np.allclose(first.long_range_mass, second.long_range_mass, atol=1e-5)
        assert np.allclose(first.entropy, second.entropy, atol=1e-4)
    # Against a plain forward pass: entropy and signal of the position before each response token.
    rollout = rollouts[0]
    full = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        log_probabilities = model(full).logits[0].log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)[11:-1]
    assert np.allclose(together[0].entropy, entropy.numpy(), atol=1e-4)
