"""Traced attention against `output_attentions=True` of an eager copy, and hooks that leave nothing behind."""

from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from pivottrace_trl import AttentionTracer, Rollout, trace_rollouts
from pivottrace_trl.tracing import attention, attention_tracer
from pivottrace_trl.tracing.attention import attention_statistics
from pivottrace_trl.tracing.layers import find_attention_modules, select_layers
from pivottrace_trl.tracing.rollout_pass import choose_local_heads
from pivottrace_trl.tracing.token_statistics import token_statistics

from ..conftest import ARCHITECTURES, make_model


WINDOW, WAAD_WINDOW, NUM_SINKS = 8, 5, 2
FIELDS = {"long_range_mass": 1.0, "waad": WAAD_WINDOW, "spans": 44, "newest": 1.0}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
# What transformers and torch do not offer: soft-capping and learned sinks in sdpa, learned sinks in flex on a CPU.
MISSING = {"sdpa": ("gemma2", "gpt_oss"), "flex_attention": ("gpt2", "gpt_oss")}
# What the user may have done to the model, beside its architecture.
SETUPS = {
    "sdpa": {"implementation": "sdpa"},
    "eager": {"implementation": "eager"},
    "flex": {"implementation": "flex_attention"},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "lora": {"lora": "active"},
    "lora-disabled": {"lora": "disabled"},
    "lora-merged": {"lora": "merged"},
    "checkpointing": {"checkpointing": True},
    "4bit": {"bits": 4},
    "8bit": {"bits": 8},
    "4bit-lora": {"bits": 4, "lora": "active"},
}


def batch_of(lengths=(40, 25, 33), width=44) -> dict[str, torch.Tensor]:
    """Prompts padded on the left to half of `width`, completions padded on the right."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        start = (width - length) // 2
        input_ids[row, start : start + length] = torch.randint(4, 100, (length,), generator=generator)
        attention_mask[row, start : start + length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@contextmanager
def same_inputs(user, eager, batch):
    """
    Give the attention modules of the eager copy the inputs that they have in the user's model. In half precision and
    on quantized activations two attention implementations drift apart from layer to layer, whoever looks at them.
    """
    inputs: dict[int, torch.Tensor] = {}

    def keep(layer, module, args, kwargs):
        inputs[layer] = args[0] if args else kwargs["hidden_states"]

    def replace(layer, module, args, kwargs):
        if args:
            return (inputs[layer], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": inputs[layer]}

    def hook(model, function):
        modules = find_attention_modules(model).items()
        return [m.register_forward_pre_hook(partial(function, i), with_kwargs=True) for i, m in modules]

    handles = hook(user, keep)
    with torch.no_grad():
        user(**batch, use_cache=False)
    handles += hook(eager, replace)
    yield
    for handle in handles:
        handle.remove()


def reference(model, batch, layer) -> dict[str, torch.Tensor]:
    """The statistics by their definitions, in float64, from the full attention map of one layer."""
    with torch.no_grad():
        attention = model(**batch, output_attentions=True, use_cache=False).attentions[layer].double()
    mask = batch["attention_mask"].bool()
    position = torch.arange(mask.shape[1])
    distance = (position[:, None] - position[None, :]).clamp(min=0)
    is_sink = mask & (mask.long().cumsum(1) <= NUM_SINKS)
    far = (distance >= WINDOW) & ~is_sink[:, None, None, :] & mask[:, None, None, :]
    attention = attention * mask[:, None, None, :]
    return {
        "long_range_mass": (attention * far).sum(-1) * mask[:, None],
        "waad": (attention * distance.clamp(max=WAAD_WINDOW)).sum(-1) * mask[:, None],
        "spans": (attention * distance).sum(-1) * mask[:, None],
        "newest": attention.diagonal(dim1=-2, dim2=-1) * mask[:, None],
    }


def assert_equal_statistics(statistics, expected, tolerance):
    for name, unit in FIELDS.items():
        # Distances in units of the largest one possible: probabilities and distances get the same tolerance.
        error = ((getattr(statistics, name) - expected[name]).abs().max() / unit).item()
        assert error < tolerance, f"{name} is off by {error:.1e}"


def traced(model, batch, heads=None, **options):
    tracer = AttentionTracer(model, heads=heads, window=WINDOW, waad_window=WAAD_WINDOW, num_sinks=NUM_SINKS)
    with torch.no_grad(), tracer.capture(batch["attention_mask"], **options) as capture:
        output = model(**batch, use_cache=False).logits
    return capture, output


def num_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def set_up(name, path, implementation="sdpa", dtype=torch.float32, lora=None, checkpointing=False, bits=None):
    """A model as a user would have it, always with the same weights."""
    model = make_model(name, attn_implementation=implementation)
    if bits:
        if not (path / name).exists():
            model.save_pretrained(path / name)
        quantization = (
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
            if bits == 4
            else BitsAndBytesConfig(load_in_8bit=True)
        )
        model = AutoModelForCausalLM.from_pretrained(
            path / name, quantization_config=quantization, dtype=dtype, attn_implementation=implementation
        ).eval()
        assert any(type(m).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits] for m in model.modules())
    model = model.to(dtype) if dtype is not torch.float32 else model
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    if lora:
        attention = next(iter(find_attention_modules(model).values()))
        projections = [n for n, m in attention.named_modules() if isinstance(m, nn.Linear | Conv1D)]
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=projections, init_lora_weights=False)).eval()
        if lora == "merged":
            model = model.merge_and_unload()
    return model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.bnb
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_full_attention_map(name, setup, model_path):
    options = dict(SETUPS[setup])
    dtype = options.get("dtype", torch.float32)
    implementation = options.get("implementation", "eager" if name in MISSING["sdpa"] else "sdpa")
    if name in MISSING.get(implementation, ()):
        pytest.skip(f"{name} does not run with {implementation} here")
    model = set_up(name, model_path, **{**options, "implementation": implementation})
    eager = set_up(name, model_path, **{**options, "implementation": "eager"})
    batch, before = batch_of(), num_hooks(model)
    is_disabled = options.get("lora") == "disabled"
    with model.disable_adapter() if is_disabled else nullcontext():
        with torch.no_grad():
            plain = model(**batch, use_cache=False).logits
        capture, output = traced(model, batch)
    assert torch.equal(output, plain)
    assert num_hooks(model) == before
    assert list(capture.layers) == ([3] if name in ("gemma2", "gemma3", "gpt_oss") else [2, 3])
    drifts = dtype is not torch.float32 or "bits" in options
    with (
        eager.disable_adapter() if is_disabled else nullcontext(),
        same_inputs(model, eager, batch) if drifts else nullcontext(),
    ):
        for layer, statistics in capture.layers.items():
            expected = reference(eager, batch, layer)
            assert_equal_statistics(statistics, expected, TOLERANCE[dtype])
            assert all(getattr(statistics, field).dtype == torch.float32 for field in FIELDS)
            # Heads differ and attention does reach back: the comparison is not one of zeros.
            assert expected["long_range_mass"].std() > 0.05 and expected["long_range_mass"].max() > 0.2


def attend_in_float64(module, query, key, value, attention_mask, scaling, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(groups, dim=1) for tensor in (key, value))
    weights = (query.double() @ key.transpose(2, 3) * scaling + attention_mask.double()).softmax(dim=-1)
    return (weights @ value).to(query.dtype).transpose(1, 2).contiguous(), weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "gpt_neox", "gpt2", "olmo2", "mixtral"])
def test_half_precision_is_exact_where_eager_rounds(name, dtype):
    """Eager attention rounds its logits; from the same queries and keys in float64, the tracer is as exact as ever."""
    AttentionInterface.register("float64", attend_in_float64)
    AttentionMaskInterface.register("float64", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model, batch = make_model(name, attn_implementation="float64").to(dtype), batch_of()
    capture, _ = traced(model, batch)
    for layer, statistics in capture.layers.items():
        assert_equal_statistics(statistics, reference(model, batch, layer), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_statistics_stay_in_float32_under_autocast(dtype):
    batch, model = batch_of(), make_model("llama")
    eager = make_model("llama", attn_implementation="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16), same_inputs(model, eager, batch):
        capture, _ = traced(model, batch)
        assert capture.layers[2].long_range_mass.dtype == torch.float32
        assert_equal_statistics(capture.layers[2], reference(eager, batch, 2), 5e-3)


def test_lora_is_seen():
    batch, base = batch_of(), make_model("llama")
    plain, _ = traced(base, batch)
    torch.manual_seed(0)
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    capture, _ = traced(model.eval(), batch)
    assert (capture.layers[2].waad - plain.layers[2].waad).abs().max() > 1e-2


def test_sliding_layers_are_skipped_and_reported():
    tracer = AttentionTracer(make_model("gemma3"))
    assert list(tracer.heads) == [3]  # the middle of the layers that see everything: 1, 3 and 5
    assert tracer.skipped_layers == dict.fromkeys([0, 2, 4], "sliding window of 12 tokens")
    # Named, a sliding layer is traced all the same, with the window it has.
    model, eager = make_model("gemma3"), make_model("gemma3", attn_implementation="eager")
    capture, _ = traced(model, batch_of(), heads={2: None})
    assert_equal_statistics(capture.layers[2], reference(eager, batch_of(), 2), 1e-5)
    # Where all layers slide there are no others to take.
    assert AttentionTracer(make_model("mistral-sliding")).skipped_layers == {}


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt_oss"])
def test_long_sequences_are_chunked_exactly(name, monkeypatch):
    # Blocks of 7 queries: chunk borders fall everywhere.
    monkeypatch.setattr(attention, "block_numel", lambda device: 7 * 2 * 4 * 180)
    eager = make_model(name, attn_implementation="eager")
    batch = batch_of(lengths=(170, 121), width=180)
    capture, _ = traced(eager, batch)
    for layer, statistics in capture.layers.items():
        assert_equal_statistics(statistics, reference(eager, batch, layer), 1e-5)


def test_fewer_tokens_than_sinks():
    mask = torch.tensor([[0, 0, 0, 1, 0]]).bool()
    query, key = torch.randn(2, 1, 1, 5, 4, generator=torch.Generator().manual_seed(0))[..., None, :, :, :].unbind(0)
    statistics = attention_statistics(query[0], key[0], 1.0, mask, window=1, num_sinks=4)
    assert statistics.long_range_mass.tolist() == [[[0.0] * 5]] and statistics.spans.tolist() == [[[0.0] * 5]]


def test_chosen_heads_rows_and_queries_only():
    model, batch = make_model("qwen2"), batch_of()
    everything, _ = traced(model, batch)
    capture, _ = traced(model, batch, heads={2: [3, 1], 3: [0]}, rows=torch.tensor([2, 0]), num_queries=30)
    expected = {2: everything.layers[2].waad[[2, 0]][:, [3, 1], -30:], 3: everything.layers[3].waad[[2, 0], :1, -30:]}
    assert torch.allclose(capture.layers[2].waad, expected[2], atol=1e-5)
    assert torch.allclose(capture.signal("waad"), torch.cat(list(expected.values()), dim=1).mean(dim=1), atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True, None])
def test_training_step_is_bit_identical_and_traced_once(use_reentrant, monkeypatch):
    """Outputs and gradients, with gradient checkpointing of either kind (`None`: without)."""
    num_reductions = []
    reduce = attention_tracer.attention_statistics
    monkeypatch.setattr(
        attention_tracer, "attention_statistics", lambda *a, **k: num_reductions.append(1) or reduce(*a, **k)
    )
    gradients = []
    for is_traced in (False, True):
        model, batch = make_model("llama").train(), batch_of()
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        tracer = AttentionTracer(model)
        # The backward pass is inside the block on purpose: checkpointing repeats the forward passes there.
        with tracer.capture(batch["attention_mask"]) if is_traced else nullcontext():
            model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert len(num_reductions) == 2  # layers
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_nothing_happens_while_decoding(monkeypatch):
    model, batch = make_model("llama"), batch_of(lengths=(8, 8), width=8)
    num_reductions = []
    monkeypatch.setattr(attention_tracer, "attention_statistics", lambda *a, **k: num_reductions.append(1))
    expected = model.generate(**batch, max_new_tokens=6, do_sample=False)
    with AttentionTracer(model).capture(batch["attention_mask"]):
        assert torch.equal(model.generate(**batch, max_new_tokens=6, do_sample=False), expected)
    assert len(num_reductions) == 2  # the prompts, once for each layer


def test_compiled_models_are_traced_uncompiled():
    model, batch = make_model("llama"), batch_of()
    expected, _ = traced(model, batch)
    compiled = torch.compile(model, backend="eager")
    in_place = make_model("llama")
    in_place.compile(backend="eager")
    for variant in (compiled, in_place):
        with torch.no_grad():
            before = variant(**batch, use_cache=False).logits
        capture, _ = traced(variant, batch)
        assert torch.equal(capture.signal(), expected.signal())
        with torch.no_grad():
            assert torch.equal(variant(**batch, use_cache=False).logits, before)


def test_exceptions_leave_nothing_behind():
    model, batch = make_model("llama"), batch_of()
    module = model.model.layers[3].self_attn
    functions = dict(ALL_ATTENTION_FUNCTIONS)

    def fail(*args):
        raise ZeroDivisionError

    handle = module.o_proj.register_forward_pre_hook(fail)
    before = num_hooks(model)
    with pytest.raises(ZeroDivisionError):
        traced(model, batch)
    assert num_hooks(model) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions and not attention_tracer._RUNNING
    handle.remove()
    capture, _ = traced(model, batch)
    assert set(capture.layers) == {2, 3}


def test_models_without_softmax_attention_are_refused_by_name():
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2))
    rwkv = RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2))
    for model in (mamba, rwkv):
        with pytest.raises(ValueError, match=f"{type(model).__name__} has no attention module that can be read"):
            AttentionTracer(model)
    with pytest.raises(ValueError, match="Linear has no attention module"):
        find_attention_modules(nn.Linear(2, 2))


def test_bad_arguments():
    with pytest.raises(ValueError, match="window.*0"):
        AttentionTracer(make_model("llama"), window=0)
    with pytest.raises(ValueError, match=r"layers \[9\]"):
        AttentionTracer(make_model("llama"), heads={9: [0]})
    tracer, batch = AttentionTracer(make_model("llama")), batch_of()
    with (
        tracer.capture(batch["attention_mask"]) as capture,
        pytest.raises(RuntimeError, match="no forward pass reached"),
    ):
        capture.signal()
    model = make_model("llama")
    wrong = batch["attention_mask"][:1]
    with pytest.raises(ValueError, match="waad_window.*-1"):
        AttentionTracer(model, waad_window=-1)
    with (
        AttentionTracer(model, heads={2: [4]}).capture(batch["attention_mask"]),
        pytest.raises(ValueError, match="has 4"),
    ):
        model(**batch)
    with AttentionTracer(model).capture(wrong), pytest.raises(RuntimeError, match="Pass the mask of this very batch"):
        model(**batch)


@pytest.mark.parametrize(("num_layers", "layers"), [(1, [0]), (2, [0, 1]), (6, [2, 3]), (24, [8, 10, 12, 13, 15])])
def test_middle_layers(num_layers, layers):
    assert select_layers(num_layers) == layers


def test_local_heads_are_those_with_the_shortest_spans():
    spans = {3: torch.tensor([5.0, 1.0, 9.0]), 7: torch.tensor([8.0, 7.0, 2.0])}
    assert choose_local_heads(spans, ratio=0.5) == {3: [0, 1], 7: [2]}
    assert choose_local_heads(spans, ratio=0.01) == {3: [1]}
    # In trace_rollouts: the mean over all response tokens, here of one response, by the full attention maps.
    rollout = Rollout(list(range(4, 20)), list(range(30, 60)))
    _, heads = trace_rollouts(make_model("llama"), [rollout], 0, progress=False)
    eager = make_model("llama", attn_implementation="eager")
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    spans = {layer: reference(eager, batch, layer)["spans"][0, :, 15:-1].mean(-1) for layer in (2, 3)}
    assert heads == choose_local_heads(spans) and sum(map(len, heads.values())) == round(0.3 * 8)


def test_a_ruled_out_token_has_no_entropy():
    logits = torch.tensor([[[0.0, 0.0, float("-inf")], [2.0, 2.0, 2.0]]])
    statistics = token_statistics(logits, torch.zeros(1, 2, dtype=torch.long), 1.0)
    assert torch.allclose(statistics.entropy, torch.tensor([[2.0, 3.0]]).log())


def test_traces_of_rollouts_do_not_depend_on_batching():
    model = make_model("qwen2")
    generator = torch.Generator().manual_seed(1)

    def ids(n):
        return torch.randint(4, 100, (n,), generator=generator).tolist()

    rollouts = [Rollout(ids(p), ids(c)) for p, c in [(12, 30), (5, 44), (20, 3), (9, 60), (30, 18)]]
    rollouts.insert(2, Rollout(ids(6), [1]))  # nothing but the end
    together, heads = trace_rollouts(model, rollouts, 0, window=WINDOW, progress=False)
    assert [len(trace) for trace in together] == [30, 44, 0, 3, 60, 18]
    for rollout, trace in zip(rollouts, together):
        if rollout.is_empty:
            continue
        (alone,), same_heads = trace_rollouts(model, [rollout], 0, heads, window=WINDOW, progress=False)
        assert same_heads == heads
        for name in ("long_range_mass", "waad", "entropy"):
            assert np.allclose(getattr(alone, name), getattr(trace, name), atol=1e-4), name
    # Against a plain forward pass: entropy and signal of the position before each response token.
    rollout = rollouts[0]
    full = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        log_probabilities = model(full).logits[0].log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)[11:-1]
    assert np.allclose(together[0].entropy, entropy.numpy(), atol=1e-4)
    (hot,), _ = trace_rollouts(model, [rollout], 0, heads, temperature=2.0, progress=False)
    assert (hot.entropy > together[0].entropy).mean() > 0.9
