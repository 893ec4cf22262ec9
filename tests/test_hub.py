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

from pivottrace_trl import AnnotationLedger, PivotDensityCallback

from .conftest import FormatBy, digit_reward


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
    ask = "queue" if annotator == "queue" else lambda rows: [f"{PRIVATE}{i}" for i in range(len(rows))]
    callback = PivotDensityCallback(trainer, 8, label_column="solution", annotator=ask)
    trainer.add_callback(callback)
    trainer.train()
    trainer.save_model()
    trainer.push_to_hub()
    names = set().union(*uploads)
    assert "adapter_model.safetensors" in names and "README.md" in names
    in_checkpoints = {name for name in names if name.startswith(("checkpoint-", "last-checkpoint"))}
    assert bool(in_checkpoints) == (strategy in ("checkpoint", "all_checkpoints"))
    for name, content in ((name, content) for commit in uploads for name, content in commit.items()):
        assert not re.search(r"ledger|desk|attempts|first_look|_pivottrace", name), name
        assert PRIVATE.encode() not in readable(name, content), name
    private = tmp_path / "run" / "_pivottrace"
    assert (private / "ledger.sqlite").is_file() and (private / "first_look").is_dir()
    assert annotator == "queue" or callback.ledger.num_bought > 0


def test_a_checkpoint_holds_no_text_of_the_policy(uploads, make_trainer, tmp_path):
    """An answer beside a pass rate of 1 is as good as the label; it is kept in the private folder instead."""

    def train(**options):
        trainer = make_trainer(reward_funcs=digit_reward, save_strategy="steps", save_steps=1, max_steps=2)
        callback = PivotDensityCallback(trainer, 4, answer_format=FormatBy(lambda text: PRIVATE))
        trainer.add_callback(callback)
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


def test_the_folder_of_an_earlier_release_is_not_paid_again(make_trainer, tmp_path):
    former = tmp_path / "run" / "pivottrace" / "ledger.sqlite"
    former.parent.mkdir(parents=True)
    former.write_bytes(b"")
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"holds labels that are paid for.*rename .*pivottrace to .*_pivottrace"):
        PivotDensityCallback(trainer, 4)
    former.parent.rename(tmp_path / "run" / "_pivottrace")
    with_ledger = PivotDensityCallback(trainer, 4)
    assert isinstance(with_ledger.ledger, AnnotationLedger)
