"""The pool file beside a ledger: prompt ids and questions, and never a label."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import reading, replace_atomically
from ..pool.prompts import normalised


logger = logging.getLogger(__name__)

POOL_FILE = "pool.parquet"
_CHUNK_SIZE = 10_000
_COLUMNS = ["prompt_id", "question"]
_FIX = "Start the run or the triage again, which writes it anew."


def write_pool(path: Path, prompt_ids: Sequence[str], texts: Callable[[Sequence[int]], Iterable[str]]) -> None:
    """
    Write ids and texts of a pool in its order, part by part; `texts` returns the texts of some rows. Warns if the
    question of an id has changed.
    """
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in _COLUMNS])

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for start in range(0, len(prompt_ids), _CHUNK_SIZE):
                rows = range(start, min(start + _CHUNK_SIZE, len(prompt_ids)))
                columns = [[prompt_ids[row] for row in rows], list(texts(rows))]
                writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))
        changed.extend(_changed(path, temporary))

    changed: list[str] = []
    replace_atomically(path, write)
    if changed:
        logger.warning(
            f"The pool has other questions now than before under the same ids, for {len(changed)} prompts "
            f"({', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}). Labels that were bought for "
            "them, and questions that were asked already, keep the former text. If it means something else now, give "
            "these rows new ids in `id_column`, or leave that out."
        )


def _changed(former: Path, present: Path) -> list[str]:
    """Ids of the prompts that ask something else than before."""
    new = pq.read_table(present, use_threads=False)
    try:
        old = pq.read_table(former, use_threads=False)
        before = old["question"].take(pc.index_in(new["prompt_id"], old["prompt_id"]))
    except (OSError, KeyError, pa.ArrowException):
        return []  # there is none, or it is damaged and written anew
    others = new.append_column("before", before).filter(pc.not_equal(new["question"], before)).to_pylist()
    return [row["prompt_id"] for row in others if normalised(row["question"]) != normalised(row["before"])]


def read_pool_ids(path: Path) -> frozenset[str]:
    """The ids of a pool; empty if there is no file."""
    return frozenset(
        identity for batch in _batches(path, ["prompt_id"]) for identity in batch["prompt_id"].to_pylist()
    )


def find_question(path: Path, prompt_id: str) -> str | None:
    """The question of a prompt of a pool; `None` if it is not there."""
    for batch in _batches(path, ["prompt_id", "question"]):
        found = batch.filter(pc.equal(batch["prompt_id"], prompt_id))
        if found.num_rows:
            return found["question"][0].as_py()
    return None


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if path.is_file():
        with reading(path, _FIX), pq.ParquetFile(path) as file:
            yield from file.iter_batches(_CHUNK_SIZE, columns=columns, use_threads=False)
