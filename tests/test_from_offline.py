"""A pool is triaged before there is a trainer: training takes over what was answered, asked and paid for."""

import json
import os
import signal

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model

from pivottrace_trl import AnnotationLedger, build_prompt, offline, prompt_id
from pivottrace_trl.cli import main
from pivottrace_trl.processes import BatchFolder
from pivottrace_trl.routing.router import PoolRouter
from pivottrace_trl.scoring import survey as survey_module
from pivottrace_trl.scoring.policy import ModelPolicy, fingerprint_policy
from pivottrace_trl.training.policy import TrainerPolicy

from .conftest import FIRST_DIGIT, LORA, attach, first_digit, make_model


BUDGET = 16
# As it begins, an adapter adds nothing to the model.
FRESH_LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def places(tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{i}+{i % 7}=?", "solution": str((i + i % 7) % 10)} for i in range(32)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def first_digit_reward(completions, solution, **kwargs):
    """As a triage tells what is right, so that both see the same."""
    return [float(first_digit(c[0]["content"]) == label) for c, label in zip(completions, solution, strict=True)]


def triage(places, *options) -> None:
    given = {
        "--model": places / "model",
        "--dataset": places / "pool.jsonl",
        "--output": places / "run" / "_pivottrace",
        "--max-completion-length": 12,
        "--annotation-budget": BUDGET,
        "--answer-format": FIRST_DIGIT.name,
    }
    assert main(["triage", *(str(word) for option in given.items() for word in option), *options]) == 0


def conversations(places):
    """The pool as a training script has it: in another order, and as conversations."""
    pool = load_dataset("json", data_files=str(places / "pool.jsonl"), split="train", cache_dir=str(places / "cache"))
    return pool.shuffle(seed=3).map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


def events(places) -> list[dict]:
    ledger = AnnotationLedger.open(places / "run" / "_pivottrace" / "ledger.sqlite")
    found = ledger.events()
    ledger.close()
    return found


def prompts_of(events, kind) -> list[str]:
    return sorted(event["prompt_id"] for event in events if event["kind"] == kind)


def answer(places, count: int, texts: dict[str, str] | None = None) -> None:
    """People answer the first questions of the queue."""
    folder = places / "run" / "_pivottrace"
    queue = [json.loads(line) for line in (folder / "queue.jsonl").read_text().splitlines()]
    filled = [
        {"prompt_id": row["prompt_id"], "answer": str(number % 10) if texts is None else texts[row["prompt_id"]]}
        for number, row in enumerate(queue[:count])
    ]
    (folder / "filled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filled))
    words = ["annotate", "import", str(places / "run"), str(folder / "filled.jsonl"), "--author", "ann"]
    assert main([*words, "--price", "0.5", "--answer-format", FIRST_DIGIT.name]) == 0


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
    before = events(places)
    asked, probes = prompts_of(before, "request"), prompts_of(before, "answer")
    trainer = make_trainer(conversations(places), first_digit_reward, peft_config=peft_config, max_steps=1)
    callback = attach(trainer, BUDGET)
    trainer.train()
    router = callback.router
    assert not first_answers and "are used: nothing is answered again" in capsys.readouterr().out
    assert sorted(router.prompt_ids[row] for row in router.probes) == probes
    assert callback.summary()["first_responses"]["probes"] == len(probes) == 8
    after = events(places)
    # What triage left in the queue is bought, and nothing is asked for again.
    assert prompts_of(after, "request") == asked and not prompts_of(after, "withdraw")
    assert prompts_of(after, "answer") == asked and len(asked) == callback.ledger.num_bought == BUDGET


@pytest.mark.parametrize("way", ["build_prompt", "by hand"])
def test_a_triage_asks_what_training_asks(way, places, make_trainer, first_answers, capsys):
    instruction, system_prompt = "Put the answer\n  in \\boxed{}.", "You are a calculator."
    triage(places, "--label-column", "solution", "--instruction", instruction, "--system-prompt", system_prompt)
    folder = places / "run" / "_pivottrace"
    routes = pq.read_table(folder / "routes.parquet").to_pydict()
    bare = [f"{i}+{i % 7}=?" for i in range(32)]
    assert routes["prompt"] == bare and routes["prompt_id"] == [prompt_id(question) for question in bare]
    queue = [json.loads(line) for line in (folder / "queue.jsonl").read_text().splitlines()]
    assert queue and {row["prompt"] for row in queue} <= set(bare)

    def by_hand(question):
        text = f"{question}\n{instruction}"
        return [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]

    def to_row(row):
        question = row["prompt"][0]["content"]
        built = build_prompt(question, instruction, system_prompt)
        return {"prompt": built if way == "build_prompt" else by_hand(question)}

    trainer = make_trainer(conversations(places).map(to_row), first_digit_reward, peft_config=None, max_steps=1)
    callback = attach(trainer, BUDGET, instruction=instruction)
    trainer.train()
    # To the token: what was answered and asked is taken over.
    assert not first_answers and "are used: nothing is answered again" in reason(capsys)
    answers = prompts_of(events(places), "answer")
    assert len(set(answers)) == len(answers) == callback.ledger.num_bought <= BUDGET
    assert set(routes["prompt_id"]) == set(callback.router.prompt_ids)


def test_a_file_of_finished_prompts_stays_as_it_is(places, capsys):
    bare = (places / "pool.jsonl").read_text()
    triage(places, "--instruction", "Think.")
    whole = pq.read_table(places / "run" / "_pivottrace" / "routes.parquet").to_pydict()
    (places / "pool.jsonl").write_text(bare.replace("=?", "=?\\nThink."))
    triage(places, "--instruction", "Think.")
    assert pq.read_table(places / "run" / "_pivottrace" / "routes.parquet").to_pydict() == whole
    (places / "pool.jsonl").write_text(bare)
    with_columns = ["--id-column", "solution", "--label-column", "solution"]
    given = ["--model", str(places / "model"), "--dataset", str(places / "pool.jsonl"), "--output", str(places / "a")]
    assert main(["triage", *given, *with_columns]) == 2
    assert "--id-column is the label column 'solution'" in capsys.readouterr().err
    assert main(["triage", *given, "--question-column", "text"]) == 2
    assert "--question-column is 'text', but the pool has only" in capsys.readouterr().err


@pytest.mark.parametrize("annotator", ["queue", "function", "column"])
def test_what_people_answered_meanwhile_is_evidence(annotator, places, make_trainer, first_answers):
    triage(places)
    answer(places, 10)
    before = events(places)
    given = {"queue": "queue", "column": None, "function": lambda rows: ["7"] * len(rows)}[annotator]
    pool = conversations(places) if given is None else conversations(places).remove_columns("solution")
    trainer = make_trainer(pool, peft_config=FRESH_LORA, max_steps=1)
    callback = attach(trainer, BUDGET, annotator=given)
    trainer.train()
    assert not first_answers
    router = callback.router
    assert sum(router.evidence.is_labelled & (router.first_outcomes >= 0)) >= 10
    probes = {event["prompt_id"] for event in before if event["purpose"] == "probe"}
    assert {router.prompt_ids[row] for row in router.probes} == probes
    answers = [event for event in events(places) if event["kind"] == "answer"]
    assert len({event["prompt_id"] for event in answers}) == len(answers) <= BUDGET
    assert sum(event["price"] for event in answers) == 5.0
    assert [event["author"] for event in answers[:10]] == ["ann"] * 10
    assert len(answers) == (10 if annotator == "queue" else BUDGET)


def reason(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "that a triage left" in line]
    return line


def test_other_weights_or_prompts_are_answered_anew(places, make_trainer, first_answers, tokenizer, capsys):
    triage(places, "--label-column", "solution")
    paid = prompts_of(events(places), "answer")

    def train(pool, peft_config, **options):
        trainer = make_trainer(pool, peft_config=peft_config, max_steps=1)
        callback = attach(trainer, BUDGET, **options)
        trainer.train()
        callback.detach()

    train(conversations(places), LORA)
    assert "not used, since they are by other weights: the pool is answered anew" in reason(capsys)
    assert sum(map(len, first_answers)) == 32
    first_answers.clear()
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m['content'] }}", "{{ m['content'] }} Think.")
    train(conversations(places), None)
    assert "not used, since 32 of 32 prompts are not, to the token, among those" in reason(capsys)
    assert sum(map(len, first_answers)) == 32
    # The labels are kept all the same.
    answers = prompts_of(events(places), "answer")
    assert set(paid) < set(answers) and len(set(answers)) == len(answers) <= BUDGET


@pytest.mark.parametrize("score", ["coe", "consistency"])
def test_a_score_that_reads_more_needs_no_other_responses(score, places, make_trainer, first_answers, generated):
    triage(places, *(["--estimator", score] if score == "consistency" else []))
    num_generated = len(generated)
    trainer = make_trainer(conversations(places), peft_config=None, max_steps=1)
    callback = attach(trainer, BUDGET, estimator=score, annotator="queue")
    trainer.train()
    assert not first_answers and len(generated) == num_generated
    assert len(set(callback.router.scores)) > 1


def test_a_score_without_its_samples_is_told_so(places, make_trainer, first_answers, capsys):
    triage(places)
    trainer = make_trainer(conversations(places), peft_config=None, max_steps=1)
    attach(trainer, BUDGET, estimator="consistency", annotator="queue")
    trainer.train()
    assert "not used, since there are none" in reason(capsys) and first_answers


def test_a_resumed_run_finds_the_responses_of_the_triage(places, make_trainer, first_answers, caplog):
    triage(places, "--label-column", "solution")
    for steps in (2, 4):
        trainer = make_trainer(
            conversations(places), peft_config=None, max_steps=steps, save_steps=2, save_strategy="steps"
        )
        callback = attach(trainer, BUDGET)
        trainer.train(resume_from_checkpoint=steps == 4)
        responses = callback._gate.responses
        assert len(responses.texts) == 32 and len(responses.traces) == 32
        callback.detach()
    assert not first_answers and "does not hold the first responses" not in caplog.text


def test_weights_are_told_by_what_they_compute():
    bare = make_model("llama")
    name = fingerprint_policy(bare)
    assert fingerprint_policy(get_peft_model(make_model("llama"), FRESH_LORA)) == name
    whole = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert fingerprint_policy(get_peft_model(make_model("llama"), whole)) == name
    others = {fingerprint_policy(get_peft_model(make_model("llama"), LORA))}
    half = make_model("llama").bfloat16()
    others.add(fingerprint_policy(half))
    # A model that is published in half precision, and trained in full.
    assert fingerprint_policy(make_model("llama").bfloat16().float()) == fingerprint_policy(half)
    model = get_peft_model(make_model("llama"), FRESH_LORA)
    model.add_adapter("ref", LORA)  # not active
    assert fingerprint_policy(model) == name
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B.default" in n).add_(1e-4)
    others.add(fingerprint_policy(model))
    with torch.no_grad():
        bare.lm_head.weight[3, 5] += 1.0
        bare.lm_head.weight.add_(1e-6)
    others.add(fingerprint_policy(bare))
    assert name not in others and len(others) == 4


def column_of(places, name: str) -> dict[str, str]:
    table = pq.read_table(places / "run" / "_pivottrace" / "routes.parquet").to_pydict()
    return dict(zip(table["prompt_id"], table[name], strict=True))


def test_a_second_triage_uses_new_answers_and_answers_nothing_itself(places, generated):
    triage(places)
    before, routes = events(places), column_of(places, "route")
    generated.clear()
    # As the policy said itself: nothing more need be asked for then.
    answer(places, 8, {identity: first_digit(text) or "7" for identity, text in column_of(places, "response").items()})
    triage(places)
    summary = json.loads((places / "run" / "_pivottrace" / "summary.json").read_text())
    assert not generated and column_of(places, "route") != routes
    assert summary["annotated"] == 8 and summary["probe_success"] is not None
    after = events(places)
    assert {e["purpose"] for e in after if e["kind"] == "answer"} == {"probe"}
    assert not set(prompts_of(after[len(before) :], "request")) & set(prompts_of(after, "answer"))
    # A larger budget, and another score with signals of its own: more is asked for, none of it twice.
    triage(places, "--annotation-budget", "24")
    triage(places, "--annotation-budget", "24", "--estimator", "coe")
    triage(places, "--annotation-budget", "24", "--probe-size", "4")
    assert not generated
    latest = events(places)
    assert prompts_of(latest, "answer") == prompts_of(after, "answer")
    assert not set(prompts_of(latest[len(after) :], "request")) & set(prompts_of(after, "answer"))


@pytest.mark.parametrize("stage", ["answering", "tracing", "buying", "writing"])
def test_a_triage_that_is_killed_goes_on_where_it_stopped(stage, places, monkeypatch):
    places_of = {
        "answering": (survey_module, "generate_rollouts"),
        "tracing": (ModelPolicy, "trace"),
        "buying": (PoolRouter, "route"),
        "writing": (offline, "_write"),
    }
    owner, name = places_of[stage]
    original, save = getattr(owner, name), BatchFolder.save

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        if stage == "answering":  # in the middle of it
            saved = []
            BatchFolder.save = lambda *args: die() if len(saved) == 3 else (saved.append(1), save(*args))
        else:
            setattr(owner, name, die)
        triage(places, "--label-column", "solution", "--batch-size", "8")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert getattr(owner, name) is original
    made = len(list((places / "run" / "_pivottrace" / "survey" / "greedy").glob("responses-*.parquet")))
    paid = prompts_of(events(places), "answer")
    batches, generate = [], ModelPolicy.generate
    monkeypatch.setattr(ModelPolicy, "generate", lambda *args: batches.append(1) or generate(*args))
    triage(places, "--label-column", "solution", "--batch-size", "8")
    assert made == (2 if stage == "answering" else 4) and len(batches) == 4 - made
    answers = prompts_of(events(places), "answer")
    assert set(paid) <= set(answers) and len(answers) == len(set(answers)) == 8
    assert bool(paid) == (stage in ("buying", "writing"))
