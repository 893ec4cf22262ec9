"""From a pool to labels to a trainer that knows nothing of us: the walk-through of docs/annotation.md, run."""

import csv
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl.cli import main
from pivottrace_trl.demo.arithmetic import make_pool
from pivottrace_trl.demo.arm import MODEL_PATH


PAGE = Path(__file__).parents[1] / "docs" / "annotation.md"
SECTION = PAGE.read_text().split("\n## Another trainer\n")[1].split("\n## ")[0]


def answer_all(path: Path, knowledge: dict[str, str]) -> int:
    """What a person does with the sheet: all but one question is answered."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[1:]:
        row["answer"] = knowledge[row["prompt"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows) - 1


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """The commands of the page, on a pool without labels; returns how many were given."""
    monkeypatch.chdir(tmp_path)
    whole = make_pool(24, seed=0)
    knowledge = {
        prompt[-1]["content"]: label for prompt, label in zip(whole["prompt"], whole["solution"], strict=True)
    }
    whole.select_columns("prompt").to_json("pool.jsonl")
    lines = re.findall(r"^pivottrace (.*?)(?: +#.*)?$", SECTION, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["triage", "annotate", "annotate"]
    num_answers = 0
    for line in lines:
        line = line.replace("Qwen/Qwen2.5-0.5B-Instruct", str(MODEL_PATH))
        extra = ["--max-completion-length", "12"] if line.startswith("triage") else []
        if " import " in line:
            num_answers = answer_all(Path("run/queue.csv"), knowledge)
        assert main([*line.split(), *extra]) == 0
    assert num_answers >= 5
    return num_answers


def test_the_walk_through(labelled, tmp_path):
    namespace: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL):
        exec(snippet, namespace)
    labels, pool = namespace["labels"], namespace["pool"]
    assert len(labels) == labelled == len(pool) and set(pool["weight"]) == {1.0}
    assert sorted(pool["solution"][:]) == sorted(labels["solution"][:])

    # What verl's RLHFDataset and reward managers read of a row.
    (row, *_) = rows = load_dataset("parquet", data_files="train.parquet", split="train").to_list()
    assert len(rows) == labelled and set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["prompt"] == labels[0]["prompt"] and row["prompt"][0].keys() == {"role", "content"}
    assert row["reward_model"] == {"style": "rule", "ground_truth": labels[0]["solution"]}
    assert row["data_source"] == "labels" and row["extra_info"]["index"] == 0

    # As the files of the command line have them.
    assert main(["annotate", "export", "run", "--labels", "--format", "parquet"]) == 0
    assert main(["annotate", "export", "run", "--routes", "--format", "parquet"]) == 0
    assert pq.read_table("run/labels.parquet")["solution"].to_pylist() == labels["solution"][:]
    routed = pq.read_table("run/routed.parquet").to_pylist()
    assert len(routed) == 24 and sum(row["solution"] is not None for row in routed) == labelled

    trainer = GRPOTrainer(
        model=str(MODEL_PATH),
        reward_funcs=accuracy_reward,
        args=GRPOConfig(
            output_dir="plain",
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            max_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=labels,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert any("rewards/accuracy_reward/mean" in entry for entry in trainer.state.log_history)
