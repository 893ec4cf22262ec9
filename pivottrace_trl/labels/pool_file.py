"""The pool beside its ledger: which prompts there are, and what they ask. Never a label."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import reading, replace_atomically


POOL_FILE = "pool.parquet"
_CHUNK_SIZE = 10_000
_DIGEST = b"prompt_ids"
_FIX = "Start the run or the triage once more: it is written anew."


def write_pool(path: Path, prompt_ids: Sequence[str], texts: Callable[[Sequence[int]], Iterable[str]]) -> None:
    """
    Write ids and texts of a pool, in its order, a part at a time; `texts` gives those of some rows. A file with the
    same ids stays.
    """
    digest = hashlib.sha256("\n".join(prompt_ids).encode()).hexdigest().encode()
    if path.is_file() and _digest_of(path) == digest:
        return
    fields = [pa.field(name, pa.string(), nullable=False) for name in ("prompt_id", "question")]
    schema = pa.schema(fields, {_DIGEST: digest})

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for start in range(0, len(prompt_ids), _CHUNK_SIZE):
                rows = range(start, min(start + _CHUNK_SIZE, len(prompt_ids)))
                columns = [[prompt_ids[row] for row in rows], list(texts(rows))]
                writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))

    replace_atomically(path, write)


def _digest_of(path: Path) -> bytes | None:
    try:
        return (pq.read_schema(path).metadata or {}).get(_DIGEST)
    except (OSError, pa.ArrowException):
        return None  # damaged, or something else: it is written anew


def read_pool_ids(path: Path) -> frozenset[str]:
    """The ids of a pool; none if there is no file."""
    return frozenset(
        identity for batch in _batches(path, ["prompt_id"]) for identity in batch["prompt_id"].to_pylist()
    )


def find_question(path: Path, prompt_id: str) -> str | None:
    """What a prompt of a pool asks."""
    for batch in _batches(path, ["prompt_id", "question"]):
        found = batch.filter(pc.equal(batch["prompt_id"], prompt_id))
        if found.num_rows:
            return found["question"][0].as_py()
    return None


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if path.is_file():
        with reading(path, _FIX), pq.ParquetFile(path) as file:
            yield from file.iter_batches(_CHUNK_SIZE, columns=columns, use_threads=False)
