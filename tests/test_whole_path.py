"""The whole path of labels: those one has, people, an endpoint, training, and out again to a trainer without us."""

import csv
import json
from pathlib import Path

import pytest
from datasets import load_dataset
from peft import LoraConfig

from pivottrace_trl import AnnotationLedger, EndpointAnnotator, build_prompt
from pivottrace_trl.cli import main
from pivottrace_trl.training.policy import TrainerPolicy

from .conftest import attach, digit_reward, make_model
from .labels.fake_endpoint import Endpoint


INSTRUCTION = "Put the final answer in a box."
TRUTH = {
    row["question"]: row["answer"]
    for row in map(json.loads, (Path(__file__).parent / "data" / "gsm8k.jsonl").read_text().splitlines())
}
OWN = set(list(TRUTH)[::2])
BUDGET, EACH = 8, 300e-6


@pytest.fixture
def endpoint(monkeypatch):
    """Knows every answer."""
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    endpoint = Endpoint()
    endpoint.asked = []

    def behave(number, request):
        # An endpoint is asked as the policy is, instruction and all.
        question = request["messages"][-1]["content"].removesuffix(f"\n{INSTRUCTION}")
        endpoint.asked.append(question)
        return 200, rf"\boxed{{{TRUTH[question]}}}"

    endpoint.behave = behave
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_from_the_labels_one_has_to_any_trainer(endpoint, tokenizer, make_trainer, generated, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [{"question": question, "answer": label if question in OWN else None} for question, label in TRUTH.items()]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def triage():
        options = ["--label-column", "answer", "--annotator", "queue", "--annotation-budget", str(BUDGET)]
        columns = ["--prompt-column", "question", "--instruction", INSTRUCTION, "--max-completion-length", "24"]
        words = ["triage", "--model", "model", "--dataset", "pool.jsonl", "--output", "run/_pivottrace"]
        assert main([*words, *options, *columns]) == 0

    def look() -> AnnotationLedger:
        return AnnotationLedger.open("run/_pivottrace/ledger.sqlite")

    triage()
    assert generated and len(look().own_ids) == 16 and look().num_bought == 0
    generated.clear()

    # A person answers three of the questions, which are none of those that have a label.
    assert main(["annotate", "export", "run", "--format", "csv"]) == 0
    sheet = read_csv(Path("run/_pivottrace/queue.csv"))
    assert 3 <= len(sheet) <= BUDGET and not {row["prompt"] for row in sheet} & OWN
    by_hand = {row["prompt"] for row in sheet[:3]}
    with open("filled.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt_id", "answer"], *([row["prompt_id"], TRUTH[row["prompt"]]] for row in sheet[:3])])
    for _ in range(2):
        assert main(["annotate", "import", "run", "filled.csv", "--author", "ann", "--price", "0.5"]) == 0
    assert look().num_bought == 3 and look().spent == 1.5
    triage()
    assert not generated and look().num_bought == 3
    assert not {query.prompt for query in look().queue()} & (by_hand | OWN)

    # Training takes over what was answered, asked and paid for; a model is asked for the rest.
    answered, generate = [], TrainerPolicy.generate
    monkeypatch.setattr(TrainerPolicy, "generate", lambda *args: answered.append(args) or generate(*args))

    def to_row(row):
        return {"prompt": build_prompt(row["question"], INSTRUCTION), "solution": row["answer"]}

    pool = load_dataset("json", data_files="pool.jsonl", split="train", cache_dir=str(tmp_path / "cache"))
    pool = pool.shuffle(seed=1).map(to_row, remove_columns=pool.column_names)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(pool, peft_config=adapter, output_dir="run", max_completion_length=24, max_steps=8)
    annotator = EndpointAnnotator("big", endpoint.url, "key", price_per_million_tokens=(1.0, 4.0))
    callback = attach(trainer, BUDGET, annotator=annotator, instruction=INSTRUCTION, answer_format="math")
    trainer.train()
    callback.detach()
    assert not answered
    assert endpoint.asked and not set(endpoint.asked) & (by_hand | OWN)
    assert len(endpoint.asked) == len(set(endpoint.asked)) == look().num_bought - 3 <= BUDGET - 3
    assert look().spent == pytest.approx(1.5 + len(endpoint.asked) * EACH)

    # Out again: every label that is known, each once, with who gave it, and none besides.
    assert main(["annotate", "export", "run", "--labels", "--format", "csv"]) == 0
    out = read_csv(Path("run/_pivottrace/labels.csv"))
    known = OWN | by_hand | set(endpoint.asked)
    assert {row["prompt"]: row["solution"] for row in out} == {question: TRUTH[question] for question in known}
    authors = {"dataset": OWN, "ann": by_hand, "big": set(endpoint.asked)}
    assert {name: {row["prompt"] for row in out if row["author"] == name} for name in authors} == authors

    labels = look().to_dataset().map(lambda row: {"prompt": build_prompt(row["prompt"], INSTRUCTION)})
    assert len(labels) == len(known)
    plain = make_trainer(labels, digit_reward, output_dir="plain", max_completion_length=24, max_steps=2)
    plain.train()
    assert plain.state.global_step == 2
