"""A pool is triaged before there is a trainer: training takes over what was answered, asked and paid for."""

import json

import pytest
from datasets import load_dataset
from peft import LoraConfig

from pivottrace_trl.cli import main
from pivottrace_trl.training.policy import TrainerPolicy

from .conftest import FIRST_DIGIT, attach, make_model


FORMAT = FIRST_DIGIT.name
BUDGET = 16
# As it begins, an adapter adds nothing to the model.
FRESH_LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def places(tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{i}+{i % 7}=?", "solution": str(i + i % 7)} for i in range(32)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def triage(places, *options) -> None:
    given = {
        "--model": places / "model",
        "--dataset": places / "pool.jsonl",
        "--output": places / "run" / "_pivottrace",
        "--max-completion-length": 12,
        "--annotation-budget": BUDGET,
        "--answer-format": FORMAT,
    }
    assert main(["triage", *(str(word) for option in given.items() for word in option), *options]) == 0


def conversations(places):
    pool = load_dataset("json", data_files=str(places / "pool.jsonl"), split="train", cache_dir=str(places / "cache"))
    return pool.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


@pytest.fixture
def first_answers(monkeypatch):
    """The batches that a trainer's policy answers before it trains."""
    batches, generate = [], TrainerPolicy.generate

    def counted(policy, prompt_ids, number):
        batches.append(prompt_ids)
        return generate(policy, prompt_ids, number)

    monkeypatch.setattr(TrainerPolicy, "generate", counted)
    return batches


@pytest.mark.parametrize("peft_config", [None, FRESH_LORA], ids=["full", "fresh adapter"])
def test_nothing_is_answered_or_paid_twice(peft_config, places, make_trainer, first_answers, capsys):
    triage(places, "--label-column", "solution")
    trainer = make_trainer(conversations(places).shuffle(seed=3), peft_config=peft_config, max_steps=1)
    callback = attach(trainer, BUDGET)

    probes = {e["prompt_id"] for e in callback.ledger.events() if e["purpose"] == "probe"}
    trainer.train()
    assert not first_answers
    assert "answered again" in capsys.readouterr().out
    assert {callback.router.prompt_ids[row] for row in callback.router.probes} == probes
