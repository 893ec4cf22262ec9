"""Label Studio's tasks: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export."""

from collections.abc import Sequence
from typing import Any

from ..labels.queries import Query
from .tables import Row


# Name of the text area in the labelling interface; see docs/annotation.md.
_FROM_NAME, _TO_NAME = "answer", "prompt"


def to_tasks(queries: Sequence[Query], with_suggestions: bool) -> list[Row]:
    """
    Write queries as tasks, with suggestions as predictions.

    Args:
        queries (`Sequence[Query]`): the queue.
        with_suggestions (`bool`): whether to show the policy's own answer.

    Returns:
        `list[dict]`
    """
    tasks: list[Row] = []
    for query in queries:
        data = {"prompt_id": query.prompt_id, "prompt": query.prompt, "purpose": query.purpose, "score": query.score}
        task: Row = {"data": data}
        if with_suggestions and query.suggestion:
            result = {"from_name": _FROM_NAME, "to_name": _TO_NAME, "type": "textarea"}
            task["predictions"] = [{"result": [result | {"value": {"text": [query.suggestion]}}]}]
        tasks.append(task)
    return tasks


def from_task(task: Row) -> list[Row]:
    """
    Read one task of a JSON export; of several annotations each becomes a row.

    Args:
        task (`dict`): the task.

    Returns:
        `list[dict]`: rows with `prompt_id`, `answer` and, where known, `author`.
    """
    data = task.get("data")
    identity = data.get("prompt_id") if isinstance(data, dict) else None
    annotations = task.get("annotations")
    rows = []
    for annotation in annotations if isinstance(annotations, list) else []:
        if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
            rows.append({"prompt_id": identity, "answer": _text(annotation), "author": _author(annotation)})
    return rows or [{"prompt_id": identity, "answer": None}]


def _text(annotation: dict[str, Any]) -> str | None:
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict) and result.get("from_name", _FROM_NAME) == _FROM_NAME and value.get("text"):
            text = value["text"]
            return str(text[-1] if isinstance(text, list) else text)
    return None


def _author(annotation: dict[str, Any]) -> str | None:
    author = annotation.get("completed_by")
    author = author.get("email", author.get("id")) if isinstance(author, dict) else author
    return None if author is None else str(author)
