"""Tiny random models, a tokenizer and trainers, built once, with no network."""

import gc
import os
import shutil


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of the processes that tests start, too: two threads on busy cores slow each other many times.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Regex, Tokenizer, models, pre_tokenizers  # noqa: E402
from tokenizers.decoders import Fuse  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed  # noqa: E402
from transformers.models.auto.configuration_auto import AutoConfig  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

from pivottrace_trl import AnnotationLedger, PivotDensityCallback, Query, TextFormat  # noqa: E402
from pivottrace_trl.scoring import policy  # noqa: E402


torch.set_num_threads(1)
# Every training collects garbage, and looked at all that is imported here: a fifth of the time of a short run.
gc.freeze()
# The same examples on every run; no limit on time, since the machines that run this differ.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

CHARACTERS = "0123456789+-*/=?.,;:()[]{}\\ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ#$\n"
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<assistant>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# bitsandbytes quantizes blocks of 64 numbers, so that no width is smaller.
COMMON = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 6, "max_position_embeddings": 256}
LLAMA_LIKE = {**COMMON, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 3}
GEMMA = {**LLAMA_LIKE, **SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16}
ARCHITECTURES = {
    "llama": ("llama", LLAMA_LIKE),
    "llama-mha": ("llama", {**LLAMA_LIKE, "num_key_value_heads": 4}),
    "llama-mqa": ("llama", {**LLAMA_LIKE, "head_dim": 32, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**LLAMA_LIKE, "sliding_window": None}),
    "mistral-sliding": ("mistral", {**LLAMA_LIKE, "sliding_window": 20}),
    "qwen2": ("qwen2", LLAMA_LIKE),
    "qwen3": ("qwen3", {**LLAMA_LIKE, "head_dim": 16}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {**LLAMA_LIKE, "pad_token_id": 0}),
    "gpt_neox": ("gpt_neox", {**COMMON, "intermediate_size": 64, "num_attention_heads": 4}),
    "gpt2": ("gpt2", {"vocab_size": 128, "n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 256, **NO_DROPOUT}),
    "olmo2": ("olmo2", LLAMA_LIKE),
    "gpt_oss": ("gpt_oss", {**LLAMA_LIKE, **EXPERTS, **SLIDING, "head_dim": 16}),
    "mixtral": ("mixtral", {**LLAMA_LIKE, **EXPERTS}),
}


def make_model(name: str, **options):
    """A tiny random causal LM of one of `ARCHITECTURES`, always with the same weights."""
    model_type, settings = ARCHITECTURES[name]
    set_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    model = AutoModelForCausalLM.from_config(config, **options)
    # Fresh weights attend almost uniformly: larger ones make heads that differ.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    vocabulary = {token: i for i, token in enumerate(SPECIAL + list(CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
    )
    path = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(path)
    return path


@pytest.fixture
def tokenizer(tokenizer_path):
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_path)


def make_pool(num_prompts: int = 32) -> Dataset:
    """Questions with labels in column `solution`."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{i}+{i % 7}=?"}] for i in range(num_prompts)],
            "solution": [str(i + i % 7) for i in range(num_prompts)],
        }
    )


def digit_reward(completions, solution, **kwargs):
    """1.0 where the text holds the label's last digit: random models get it right now and then."""
    return [float(label[-1] in completion[0]["content"]) for completion, label in zip(completions, solution)]


def first_digit(text: str) -> str | None:
    """Answer extraction that a random model can satisfy."""
    return next((character for character in text if character.isdigit()), None)


class FormatBy(TextFormat):
    """Texts that a function finds."""

    name = "tests.conftest:FIRST_DIGIT"

    def __init__(self, extract):
        self.extract = extract


FIRST_DIGIT = FormatBy(first_digit)


# Of every trainer of the tests, unless it says otherwise.
TRAINING = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 7,
}
LORA = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Half of the time of a run as short as these goes into its plots: they are drawn, but seldom written."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("pivottrace_trl.report.plots.save_figure", lambda figure, path: None)


def attach(trainer, annotation_budget=0.5, **options) -> PivotDensityCallback:
    """Attach the callback to a trainer, with a format in which a random model answers now and then."""
    callback = PivotDensityCallback(trainer, annotation_budget, **{"answer_format": FIRST_DIGIT, **options})
    trainer.add_callback(callback)
    return callback


@pytest.fixture
def make_trainer(tokenizer, tmp_path):
    """Factory of a `GRPOTrainer`, or another `kind` of trainer, on a tiny random Llama with LoRA."""

    def make(
        dataset=None, reward_funcs=digit_reward, model=None, peft_config=LORA, kind=GRPOTrainer, inputs=None, **options
    ):
        settings = {**TRAINING, "output_dir": str(tmp_path / "run"), "num_train_epochs": 1}
        make_config = RLOOConfig if issubclass(kind, RLOOTrainer) else GRPOConfig
        return kind(
            model=model if model is not None else make_model("llama"),
            reward_funcs=reward_funcs,
            args=make_config(**{**settings, **options}),
            train_dataset=make_pool() if dataset is None else dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            **(inputs or {}),
        )

    return make


@pytest.fixture
def ledger_path(tmp_path):
    """A ledger that asks for five labels, in a folder whose name needs quotes."""
    ids = [f"{number:016x}" for number in range(40)]
    ledger = AnnotationLedger(tmp_path / "my run" / "ledger.sqlite", 10, ids)
    ledger.request([Query(identity, "1+1=?") for identity in ids[:5]])
    ledger.close()
    return ledger.path


class Generated(list):
    """The batches of prompts that a bare model answered; the one after `stop_after` of them is interrupted."""

    stop_after: int | None = None


@pytest.fixture
def generated(monkeypatch):
    """What any [`ModelPolicy`] of this test generates for."""
    batches, make = Generated(), policy.transformers_generator

    def make_counted(model, tokenizer, config):
        generate = make(model, tokenizer, config)

        def counted(prompts):
            if len(batches) == batches.stop_after:
                raise KeyboardInterrupt
            batches.append(prompts)
            return generate(prompts)

        return counted

    monkeypatch.setattr(policy, "transformers_generator", make_counted)
    return batches


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium found: install it, as with `apt-get install chromium`"
)


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()
