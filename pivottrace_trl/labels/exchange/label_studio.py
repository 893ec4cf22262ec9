"""Reads Label Studio's exports: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export."""

import json
from typing import Any

from .exporting import ANSWER_CONTROL
from .reading import Item


# Types of controls that hold an answer, with the name of their value.
_VALUES = {"textarea": "text", "number": "number", "choices": "choices"}
# Columns of JSON-MIN and CSV besides the controls: those of the exported queue, and Label Studio's own.
_EXPORTED = {"prompt_id", "prompt", "purpose", "score", "suggestion", "author", "price"}
_OWN_COLUMNS = {"id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "agreement", "history"}


def from_label_studio(item: Item) -> list[Item]:
    """
    Read an item of an export: a task (JSON) or a flat row (JSON-MIN, CSV), recognised by its fields. A row that is not
    from Label Studio is returned unchanged. Each annotation of a task becomes a row with `prompt_id`, `answer` and, if
    known, `author`. The answer is that of the control `answer` or, without such a control, of the only text area,
    number or choices.
    """
    row = item.row
    if item.error is None and isinstance(row.get("data"), dict) and "prompt_id" not in row:
        return _from_task(item)
    if item.error is None and "annotator" in row and "prompt_id" in row:
        return [_from_flat_row(item)]
    return [item]


def _from_task(item: Item) -> list[Item]:
    row, identity = item.row, item.row["data"].get("prompt_id")
    annotations = row.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        return [Item(item.number, row, "its `annotations` is no list of annotations")]
    has_truth = any(annotation.get("ground_truth") for annotation in annotations)
    items = []
    for annotation in annotations:
        answer = {"prompt_id": identity, "answer": None, "author": _author(annotation)}
        error = None
        if has_truth and not annotation.get("ground_truth"):
            error = "another annotation of this task is marked as the ground truth"
        elif not annotation.get("was_cancelled"):
            try:
                answer["answer"] = _choose(_controls(annotation.get("result")))
            except ValueError as failure:
                error = str(failure)
        items.append(Item(item.number, answer if error is None else answer | {"annotation": annotation}, error))
    return items or [Item(item.number, {"prompt_id": identity, "answer": None})]


def _from_flat_row(item: Item) -> Item:
    row = item.row
    controls = {name: [value] for name, value in row.items() if name not in _EXPORTED | _OWN_COLUMNS}
    try:
        answer = _choose({name: _flat_values(*values) for name, values in controls.items()})
    except ValueError as failure:
        return Item(item.number, row, str(failure))
    return Item(item.number, {**row, "answer": answer, "author": row.get("author") or _author(row)})


def _controls(results: Any) -> dict[str, list[Any]]:
    """The values of each control of an annotation that can hold an answer."""
    if not isinstance(results or [], list) or not all(isinstance(result, dict) for result in results or []):
        raise ValueError("its `result` is no list of results")
    controls: dict[str, list[Any]] = {}
    for result in results or []:
        value = result.get("value")
        if not isinstance(value, dict):
            continue
        kinds = [kind for kind, name in _VALUES.items() if name in value and result.get("type", kind) == kind]
        for kind in kinds:
            values = value[_VALUES[kind]]
            controls.setdefault(str(result.get("from_name", ANSWER_CONTROL)), []).extend(
                values if isinstance(values, list) else [values]
            )
    if results and not controls:
        types = sorted({str(result.get("type")) for result in results})
        raise ValueError(f"it holds no text area, number or choices, only {types}")
    return controls


def _flat_values(value: Any) -> list[Any]:
    """
    The values of a control in a flat row. A single text or choice is a plain value. Other values are in an object or a
    list of objects, which CSV stores as JSON.
    """
    if isinstance(value, str) and value.startswith(('{"', '[{"')):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    values = []
    for part in value if isinstance(value, list) else [value]:
        names = [name for name in _VALUES.values() if isinstance(part, dict) and name in part]
        inner = part[names[0]] if names else part
        values += inner if isinstance(inner, list) else [inner]
    return values


def _choose(controls: dict[str, list[Any]]) -> Any:
    """The one answer of an annotation; `None` if it is empty."""
    given = {name: [value for value in values if value not in (None, "")] for name, values in controls.items()}
    names = [ANSWER_CONTROL] if ANSWER_CONTROL in given else [name for name, values in given.items() if values]
    if len(names) > 1:
        raise ValueError(
            f"it holds several controls, {sorted(names)}: call the one with the answer `{ANSWER_CONTROL}`"
        )
    values = given[names[0]] if names else []
    if any(value != values[0] for value in values):
        raise ValueError(f"the control `{names[0]}` holds {len(values)} answers: {values!r:.200}")
    return values[0] if values else None


def _author(annotation: dict[str, Any]) -> str | None:
    author = annotation.get("completed_by", annotation.get("annotator"))
    author = author.get("email", author.get("id")) if isinstance(author, dict) else author
    return None if author in (None, "") else str(author)
