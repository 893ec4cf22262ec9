"""Exports labels as a dataset: those that were bought and the user's own, and no others."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features

from ..files import reading
from ..pool import pool_ids
from .journal import LedgerJournal
from .pool_file import POOL_FILE
from .queries import as_written
from .state import LedgerView


logger = logging.getLogger(__name__)

_CHUNK_SIZE = 10_000
_TIME = pa.timestamp("ms", tz="UTC")
# Time of the last answer to each prompt, and the cost of all its answers and opinions. If a query has a single `max`,
# SQLite takes the other columns from the row with the maximum.
_CHARGES = """
SELECT prompt_id, happened_at, sum(price), max(CASE WHEN kind != 'opinion' THEN event_id END) AS latest
FROM events WHERE kind IN ('answer', 'own', 'opinion') GROUP BY prompt_id HAVING latest IS NOT NULL
"""
_DESCRIPTION = {
    "route": pa.string(),
    "score": pa.float64(),
    "agreement": pa.float64(),
    "purpose": pa.string(),
    "author": pa.string(),
}
_ARROW_TYPES = {
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
    frozenset({bool}): pa.bool_(),
}


def labelled_dataset(
    ledger: LedgerJournal, dataset: Dataset | None, prompt_ids: Sequence[str] | None, columns: Sequence[str]
) -> Dataset:
    """The labels of a ledger with their prompts, see [`AnnotationLedger.to_dataset`]."""
    ledger.refresh()
    ids, prompts = read_prompts(ledger, dataset, prompt_ids, columns)
    known = ledger.bought_ids | ledger.own_ids
    rows = [row for row, identity in enumerate(ids) if identity in known]
    if dataset is None and (num_left := len(known.difference(ids))):
        logger.warning(
            f"{num_left} labels of {ledger.path} are of prompts that are no longer in the pool, and are left out. To "
            "include them, pass the former pool as `dataset` to `to_dataset`."
        )
    return beside(prompts.select(rows), label_table(ledger, [ids[row] for row in rows]))


def read_prompts(
    ledger: LedgerJournal, dataset: Dataset | None, prompt_ids: Sequence[str] | None, columns: Sequence[str]
) -> tuple[Sequence[str], Dataset]:
    """Ids and prompts of a pool: from the user's dataset, or otherwise from the ledger's own files."""
    if dataset is None:
        return _questions(ledger)
    ids = pool_ids(dataset) if prompt_ids is None else prompt_ids
    if len(ids) != len(dataset):
        raise ValueError(
            f"There are {len(ids)} `prompt_ids` for the {len(dataset)} rows of `dataset`. Pass `pool_ids(dataset)`."
        )
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise ValueError(f"`columns` names `{missing[0]}`, but the dataset has {dataset.column_names}.")
    known = ledger.bought_ids | ledger.own_ids
    if known and known.isdisjoint(ids):
        raise ValueError(
            f"None of the {len(known)} labelled prompts of {ledger.path} is among the {len(ids)} rows of `dataset`. "
            "Pass the pool that the ledger was made for. If its run had an id column or an instruction, also pass the "
            "`prompt_ids` that `pool_ids` returns with the same arguments."
        )
    return ids, dataset.with_format(None).select_columns(list(columns))


def _questions(ledger: LedgerJournal) -> tuple[list[str], Dataset]:
    """Ids and texts of the pool file beside a ledger. An older ledger has none: then those that it asked about."""
    path = ledger.path.with_name(POOL_FILE)
    if not path.is_file():
        pairs = ledger.select("SELECT prompt_id, prompt FROM prompts ORDER BY rowid")
        texts = pa.table({"prompt": pa.array([text for _, text in pairs], pa.string())})
        return [identity for identity, _ in pairs], Dataset(texts)
    with reading(path, "Start the run or the triage again, which writes it anew."):
        table = pq.read_table(path, columns=["prompt_id", "question"])
    return table["prompt_id"].to_pylist(), Dataset(pa.table({"prompt": table["question"]}))


def beside(prompts: Dataset, table: pa.Table) -> Dataset:
    """Join prompts with a table of what is known about them, row by row. The id is the first column."""
    if clash := set(prompts.column_names) & set(table.column_names):
        name = min(clash)
        raise ValueError(
            f"`columns` names `{name}`, but the result has another column of that name. Rename yours first: "
            f"`dataset.rename_column({name!r}, 'my_{name}')`."
        )
    left = prompts.with_format("arrow")[:]
    columns = {"prompt_id": table["prompt_id"]}
    columns |= {name: left[name] for name in prompts.column_names} | {name: table[name] for name in table.column_names}
    features = Features.from_arrow_schema(table.schema) | prompts.features
    features = Features({name: features[name] for name in columns})
    return Dataset(pa.table(columns), DatasetInfo(features=features))


def label_table(ledger: LedgerJournal, prompt_ids: Sequence[str]) -> pa.Table:
    """The labels of some labelled prompts with what is known about them, in this order."""
    rows = ledger.select(_CHARGES)
    answered = pa.array([row[0] for row in rows], pa.string())
    places = pc.index_in(pa.array(prompt_ids, pa.string()), answered)
    times = pa.array([row[1] for row in rows], pa.string()).cast(_TIME).take(places)
    prices = pa.array([row[2] for row in rows], pa.float64()).take(places)
    del rows

    def describe(identity: str) -> dict[str, Any]:
        return ledger.asked(identity) | {"purpose": ledger.purpose(identity), "author": ledger.author(identity)}

    described = in_chunks(prompt_ids, pa.struct(_DESCRIPTION), describe).flatten()
    known = dict(zip(_DESCRIPTION, described, strict=True)) | {"price": prices, "time": times}
    return pa.table(
        {
            "prompt_id": in_chunks(prompt_ids, pa.string(), str),
            ledger.label_column: label_column(ledger, prompt_ids),
            # The label column always keeps its name.
            **{f"label_{name}" if name == ledger.label_column else name: values for name, values in known.items()},
        }
    )


def label_column(ledger: LedgerView, prompt_ids: Sequence[str]) -> pa.ChunkedArray:
    """
    The labels of some prompts, null for those without one. Labels keep their type. If types differ, such as numbers
    from the dataset and texts from people, all become texts. If any label is a list of accepted answers, all become
    lists.
    """
    labels = [(ledger.label(identity) or {}).get(ledger.label_column) for identity in prompt_ids]
    are_lists = any(isinstance(label, list) for label in labels)
    kinds = {type(item) for label in labels for item in _items(label)}
    item_type = _ARROW_TYPES.get(frozenset(kinds), pa.string())
    if pa.types.is_int64(item_type) and any(abs(item) >= 2**63 for label in labels for item in _items(label)):
        item_type = pa.string()

    def fit(label: Any) -> Any:
        items = [_as_text(item) for item in _items(label)] if pa.types.is_string(item_type) else _items(label)
        return None if label is None else items if are_lists else items[0]

    return in_chunks(labels, pa.list_(item_type) if are_lists else item_type, fit)


def in_chunks(values: Sequence[Any], kind: pa.DataType, read: Callable[[Any], Any]) -> pa.ChunkedArray:
    """Apply a function to each value and return a column. Only one chunk at a time is held as Python objects."""
    starts = range(0, len(values), _CHUNK_SIZE)
    chunks = (values[start : start + _CHUNK_SIZE] for start in starts)
    return pa.chunked_array([pa.array([read(value) for value in chunk], kind) for chunk in chunks], kind)


def _items(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [] if label is None else [label]


def _as_text(item: Any) -> str:
    written = as_written(item)
    return written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
