"""What the trainer uploads to the hub: with the hub's own choice of files, stopped only where they would be sent."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi

from pivottrace_trl import AnnotationLedger, PivotDensityCallback, pool_ids

from .conftest import FormatBy, attach, digit_reward, make_pool


PRIVATE = "medicalfile"


@pytest.fixture
def uploads(monkeypatch):
    """Commits that would have been made: `{path in the repository: content}` each."""
    commits = []

    def create_commit(self, repo_id, operations, **kwargs):
        commits.append({file.path_in_repo: Path(file.path_or_fileobj).read_bytes() for file in operations})
        return CommitInfo("https://huggingface.co/me/run/commit/1", "", "", "1")

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/run"))
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *args, **kwargs: None)
    # One commit instead of a pipeline of its own: what is uploaded is chosen before.
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False, raising=False)
    return commits


def readable(name: str, content: bytes) -> bytes:
    """The content; what a Parquet file holds once more as text, since it may be compressed."""
    table = str(pq.read_table(io.BytesIO(content)).to_pylist()) if name.endswith(".parquet") else ""
    return content + table.encode()


@pytest.mark.parametrize(
    ("strategy", "annotator"),
    [("end", "queue"), ("every_save", "callable"), ("checkpoint", "callable"), ("all_checkpoints", "queue")],
)
def test_the_hub_gets_nothing_private(strategy, annotator, uploads, make_trainer, tmp_path):
    pool = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"{PRIVATE} {i}=?"}] for i in range(8)]})
    trainer = make_trainer(
        pool, push_to_hub=True, hub_strategy=strategy, hub_always_push=True, save_strategy="steps", save_steps=2
    )
    options = {"annotator": "queue", "answer_format": "math"}
    if annotator == "callable":
        options = {"annotator": lambda rows: [f"{PRIVATE}{i}" for i in range(len(rows))]}
    callback = attach(trainer, 8, label_column="solution", **options)
    trainer.train()
    private = tmp_path / "run" / "_pivottrace"
    (private / "desk-token").write_text(PRIVATE)
    trainer.save_model()
    trainer.push_to_hub()
    names = set().union(*uploads)
    assert "adapter_model.safetensors" in names and "README.md" in names
    in_checkpoints = {name for name in names if name.startswith(("checkpoint-", "last-checkpoint"))}
    assert bool(in_checkpoints) == (strategy in ("checkpoint", "all_checkpoints"))
    for name, content in ((name, content) for commit in uploads for name, content in commit.items()):
        assert not re.search(r"ledger|desk|attempts|survey|_pivottrace", name), name
        assert PRIVATE.encode() not in readable(name, content), name
    assert (private / "ledger.sqlite").is_file() and (private / "survey").is_dir()
    assert annotator == "queue" or callback.ledger.num_bought > 0


def test_a_checkpoint_holds_no_text_of_the_policy(uploads, make_trainer, tmp_path):
    """An answer beside a pass rate of 1 is as good as the label; it is kept in the private folder instead."""

    def train(**options):
        trainer = make_trainer(reward_funcs=digit_reward, save_strategy="steps", save_steps=1, max_steps=2)
        callback = attach(trainer, 4, answer_format=FormatBy(lambda text: PRIVATE))
        trainer.train(**options)
        return callback.router.suggestions

    suggestions = train()
    assert set(suggestions.values()) == {PRIVATE}
    checkpoint = tmp_path / "run" / "checkpoint-2"
    schema = pq.read_schema(checkpoint / "pivottrace.parquet")
    assert [field.name for field in schema if pa.types.is_string(field.type)] == ["prompt_id"]
    for path in checkpoint.iterdir():
        assert PRIVATE.encode() not in readable(path.name, path.read_bytes()), path
    assert train(resume_from_checkpoint=True) == suggestions


@pytest.mark.parametrize("folder", ["pivottrace", "."])
def test_a_ledger_elsewhere_is_not_paid_again(folder, make_trainer, tmp_path):
    """In the folder of an earlier release, or where a triage with `--output` for the trainer's folder leaves it."""
    output_dir = tmp_path / "run"
    former = output_dir / folder / "ledger.sqlite"
    former.parent.mkdir(parents=True)
    AnnotationLedger(former, 4, pool_ids(make_pool())).close()
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"holds labels that are paid for, where.*Move .* to .*run/_pivottrace"):
        PivotDensityCallback(trainer, 4)
    (output_dir / "_pivottrace").mkdir()
    for path in former.parent.glob("ledger.sqlite*"):
        path.rename(output_dir / "_pivottrace" / path.name)
    assert PivotDensityCallback(trainer, 4).ledger.budget == 4
