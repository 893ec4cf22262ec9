"""
The runs of scripts/invariant.py. Everything is made here or imported by a public name, so that they run on any layout
of the package.
"""

import contextlib
import hashlib
import io
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is checked is the code beside this file, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

from pivottrace_trl import AnnotationLedger, PivotDensityCallback, TriageConfig, pool_ids, triage_pool  # noqa: E402


NUM_PROMPTS = 24
POOL_SEED = 5
ANSWERS = "0123"
WORDS = "ten box sum top cat dog red sky map sea key sun hat pen cup jar".split()
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
SAVE_STEPS = 4
KILL_AFTER = 5
# Labels are bought at each routing, and routes change from epoch to epoch.
CONFIG = TriageConfig(probe_size=6, tau_high=0.8, tau_low=0.8)


def make_model() -> LlamaForCausalLM:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(ANSWERS) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    # Fresh weights attend and answer almost uniformly: larger ones make heads and answers that differ.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(9.0)
        # Some prompts are answered briefly, others at length.
        model.lm_head.weight[model.config.eos_token_id].mul_(3.0)
    return model.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *ANSWERS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
    )


def make_pool() -> Dataset:
    chance = random.Random(POOL_SEED)
    # Longer than the window of local attention: what lies beyond it is a signal then, and not rounding alone.
    questions = [" ".join(chance.choices(WORDS, k=24)) for _ in range(NUM_PROMPTS)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}] for question in questions],
            "solution": chance.choices(ANSWERS, k=NUM_PROMPTS),
        }
    )


def brief_reward(completions, solution) -> list[float | None]:
    """Short answers are right, so that the score separates; the label counts as well."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [float(len(text) < 5 or label in text[-2:]) for text, label in zip(texts, solution, strict=True)]


class Killed(Exception):
    pass


class Recorder(TrainerCallback):
    """Notes what a run does. It stands behind the callback: at the start of an epoch the routes are made already."""

    def __init__(self, kill_after: int | None):
        self.callback: Any = None  # made later, from the trainer that has the reward
        self.routings: list[dict[str, Any]] = []
        self.rewarded: list[tuple[str, str, float | None]] = []
        self._kill_after = kill_after
        self._is_in_step = False

    def reward(self, prompts, completions, solution, **kwargs) -> list[float | None]:
        rewards = brief_reward(completions, solution)
        # Not of first responses: how these are put together for verification is no result.
        if self._is_in_step:
            questions = [prompt[0]["content"] for prompt in prompts]
            self.rewarded += zip(questions, solution, rewards, strict=True)
        return rewards

    def on_epoch_begin(self, args, state, control, **kwargs):
        router, sampler = self.callback.router, self.callback.sampler
        routing = {
            "epoch": sampler.epoch,
            "routes": router.routes.tolist(),
            # A function of seed, epoch and routes: reading it changes nothing.
            "order": list(sampler),
            "probes": router.probes.tolist(),
            "scores": router.scores.tolist(),
        }
        self.routings.append(routing)

    def on_step_begin(self, args, state, control, **kwargs):
        self._is_in_step = True

    def on_step_end(self, args, state, control, **kwargs):
        self._is_in_step = False
        if state.global_step == self._kill_after:
            raise Killed


def train(
    folder: Path,
    kind: Any = GRPOTrainer,
    peft_config: LoraConfig | None = None,
    num_epochs: int = 2,
    kill_after: int | None = None,
    resume: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train with the callback, and return what came of it; `options` are those of the callback."""
    recorder = Recorder(kill_after)
    args = (RLOOConfig if kind is RLOOTrainer else GRPOConfig)(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=10,
        num_train_epochs=num_epochs,
        # Not Adam: its first steps make a full step of a gradient that is nothing but rounding, other on each machine.
        optim="sgd",
        learning_rate=0.3,
        logging_steps=1,
        save_strategy="steps" if kill_after else "no",
        save_steps=SAVE_STEPS,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=7,
    )
    pool = make_pool()
    if "annotator" in options:  # labels that the pool holds would be one's own, and nobody would be asked for them
        pool = pool.remove_columns("solution")
    trainer = kind(
        model=make_model(),
        reward_funcs=recorder.reward,
        args=args,
        train_dataset=pool,
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )
    options = {"annotation_budget": 0.8, "answer_format": "number", "config": CONFIG, **options}
    callback = recorder.callback = PivotDensityCallback(trainer, **options)
    trainer.add_callback(callback)
    trainer.add_callback(recorder)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Killed:
        pass
    outcome = {
        "routings": recorder.routings,
        "final_scores": callback.router.scores.tolist(),
        "rewarded": recorder.rewarded,
        **purchases(of_one_process(callback.ledger)),
        "losses": [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry],
        "weights": fingerprint([weights for weights in trainer.model.parameters() if weights.requires_grad]),
    }
    callback.detach()  # closes the ledger, as the end of a process does
    return outcome


def of_one_process(ledger: object) -> AnnotationLedger:
    """The ledger itself, which only the first of several processes has."""
    assert isinstance(ledger, AnnotationLedger)
    return ledger


def purchases(ledger: AnnotationLedger) -> dict[str, Any]:
    """Who answered or declined, in order, and the labels."""
    rows = {identity: row for row, identity in enumerate(pool_ids(make_pool()))}
    events = [event for event in ledger.events() if event["kind"] in ("answer", "decline")]
    return {
        "bought": [
            [rows[event["prompt_id"]], event["purpose"], ledger.label(event["prompt_id"])]
            for event in events
            if event["kind"] == "answer"
        ],
        "declined": [rows[event["prompt_id"]] for event in events if event["kind"] == "decline"],
    }


def fingerprint(parameters: list[torch.Tensor]) -> dict[str, Any]:
    """A digest of every bit, and a few numbers to compare on other machines."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().numpy().tobytes())
    sample = [parameter.detach().flatten()[:: max(parameter.numel() // 3, 1)][:3].tolist() for parameter in parameters]
    return {"sha256": digest.hexdigest(), "sample": sample}


def train_resumed(folder: Path) -> dict[str, Any]:
    """As the first run, but killed in the second epoch, after a checkpoint, and started again."""
    killed = train(folder, num_epochs=3, kill_after=KILL_AFTER)
    return {"killed": killed, "resumed": train(folder, num_epochs=3, resume=True)}


def annotate(rows: list[dict[str, Any]]) -> list[str | None]:
    """An annotator who does not know every answer, and other ones than the dataset."""
    numbers = [sum(map(ord, row["prompt"][0]["content"])) for row in rows]
    return [None if number % 3 == 0 else ANSWERS[number % 4] for number in numbers]


def triage(folder: Path, **options: Any) -> dict[str, Any]:
    """Triage without a trainer; answers are greedy, so that no random number is drawn."""
    outcome = triage_pool(
        make_model(),
        make_tokenizer(),
        make_pool(),
        folder,
        config=CONFIG,
        answer_format="number",
        max_completion_length=10,
        progress=False,
        **options,
    )
    ledger = of_one_process(outcome.router.ledger)
    return {
        "routes": outcome.result.routes.tolist(),
        "ranking": outcome.result.ranking.tolist(),
        "probes": outcome.router.probes.tolist(),
        "queue": [query.prompt_id for query in ledger.queue()],
        "responses": outcome.responses,
        "scores": outcome.pool_scores.scores.tolist(),
        **purchases(ledger),
    }


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "grpo": lambda folder: train(folder, num_epochs=3),
    "grpo resumed": train_resumed,
    "lora, pivot_entropy": lambda folder: train(folder, peft_config=LORA, estimator="pivot_entropy"),
    "consistency": lambda folder: train(folder, estimator="consistency"),
    "probe_calibrated": lambda folder: train(folder, estimator="probe_calibrated"),
    "rloo": lambda folder: train(folder, kind=RLOOTrainer, peft_config=LORA),
    "published shares": lambda folder: train(
        folder, annotation_budget=0.293, config=TriageConfig(discard_ratio=0.421)
    ),
    "annotator who declines": lambda folder: train(folder, peft_config=LORA, annotator=annotate),
    "triage": lambda folder: triage(folder, annotation_budget=0.8, label_column="solution"),
    "triage, queue": lambda folder: triage(folder, annotation_budget=0.5, estimator="pivot_entropy"),
}


def run_all() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each run and what came of it, one thread each."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    disable_progress_bars()
    torch.set_num_threads(1)
    # Pictures are no results, and take two thirds of the time.
    with tempfile.TemporaryDirectory() as folder, patch.object(Figure, "draw"):
        for name, run in RUNS.items():
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome = run(Path(folder) / name)
            yield name, outcome
