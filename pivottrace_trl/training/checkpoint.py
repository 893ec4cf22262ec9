"""Finds the checkpoint to resume from, and saves the answers that all checkpoints share."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..files import reading, write_json, write_parquet
from ..routing.router import PoolRouter


logger = logging.get_logger(__name__)


def is_complete(checkpoint: Path) -> bool:
    """
    Whether a checkpoint was saved completely. The trainer's own state is written last, after ours.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True


def find_checkpoint(output_dir: Path, resume_from: str | bool | None) -> Path | None:
    """
    Find the checkpoint to resume from: the given folder, or with `True` the newest complete one. Returns `None` if
    nothing is to be resumed, or the run was killed before its first checkpoint was complete.

    Raises:
        ValueError: if there is no checkpoint, or the given one was cut short while it was being saved.
    """
    if not resume_from:
        return None
    if resume_from is not True:
        checkpoint = Path(resume_from)
        if checkpoint.is_dir() and not is_complete(checkpoint):
            raise ValueError(
                f"{checkpoint} was cut short while it was being saved. Resume with `resume_from_checkpoint=True`, "
                "which takes the newest complete one."
            )
        return checkpoint
    numbered = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    newest_first = sorted(numbered, key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for checkpoint in newest_first:
        if is_complete(checkpoint):
            return checkpoint
    if not numbered:
        raise ValueError(f"{output_dir} holds no checkpoint. Start without `resume_from_checkpoint`.")
    logger.warning(
        f"No checkpoint in {output_dir} was saved to its end: training starts from the beginning. What was scored and "
        "labelled before is used again."
    )
    return None


def save_suggestions(path: Path, router: PoolRouter) -> None:
    """Save the policy's own answers in the private folder, as suggestions for people."""
    rows = sorted(router.suggestions)
    columns = {
        "prompt_id": pa.array([router.prompt_ids[row] for row in rows], pa.string()),
        "answer": pa.array([router.suggestions[row] for row in rows], pa.string()),
    }
    write_parquet(path, columns)


def load_suggestions(path: Path, router: PoolRouter) -> None:
    """Restore saved answers, if there are any. They are those of the latest save, whichever checkpoint is resumed."""
    if not path.is_file():
        return
    with reading(path, "It is damaged: remove it. The people who are asked then see no suggestions at first."):
        table = pq.read_table(path)
        answers = dict(zip(table["prompt_id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    router.suggestions = {row: answers[name] for row, name in enumerate(router.prompt_ids) if name in answers}


def begin_run(path: Path, survey: str, last_event: int) -> int:
    """
    Record in a file that a run begins with a survey, and return the latest event of the ledger at that time. If an
    earlier run with the same survey was interrupted before its first checkpoint, this run continues it, and the event
    is that of the earlier run.
    """
    began = json.loads(path.read_text()) if path.is_file() else {}
    if began.get("survey") != survey:
        began = {"survey": survey, "start": last_event}
        write_json(path, began)
    return began["start"]


def end_run(path: Path) -> None:
    """Record that the run has ended, so that the next one does not count as its continuation."""
    path.unlink(missing_ok=True)
