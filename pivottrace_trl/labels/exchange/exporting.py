"""The queue as a file for people."""

from pathlib import Path

from ...files import replace_atomically
from ..ledger import AnnotationLedger
from .label_studio import to_tasks
from .tables import WRITERS, Row


def export_queue(
    ledger: AnnotationLedger, path: Path, file_format: str, with_suggestions: bool = False, limit: int | None = None
) -> int:
    """
    Write the queue, most valuable first, with an empty `answer` to fill in.

    Args:
        ledger ([`AnnotationLedger`]):
            The run's ledger.
        path (`Path`):
            The file.
        file_format (`str`):
            `"jsonl"`, `"csv"`, `"parquet"` or `"label-studio"`.
        with_suggestions (`bool`, *optional*, defaults to `False`):
            Whether to show the policy's own answer. It saves typing, and it biases people towards the policy's errors.
        limit (`int`, *optional*):
            Number of queries. Defaults to as many as the budget pays for.

    Returns:
        `int`: number of queries written.

    Raises:
        ValueError: for an unknown format or a limit below 1.
    """
    if file_format not in WRITERS:
        raise ValueError(f"`file_format` is {file_format!r}, but must be one of {sorted(WRITERS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}, but must be at least 1.")
    ledger.refresh()
    queue = ledger.queue()[:limit]
    rows: list[Row]
    if file_format == "label-studio":
        rows = to_tasks(queue, with_suggestions)
    else:
        rows = [
            {
                "prompt_id": query.prompt_id,
                "prompt": query.prompt,
                "purpose": query.purpose,
                "score": query.score,
                **({"suggestion": query.suggestion} if with_suggestions else {}),
                "answer": "",
            }
            for query in queue
        ]
    replace_atomically(path, lambda temporary: WRITERS[file_format](rows, temporary))
    return len(rows)
