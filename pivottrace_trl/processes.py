"""The processes of one run, as `accelerate launch` started them: what they exchange, and how they share work."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from .files import replace_atomically


T = TypeVar("T")

# Rank 0 may wait days for people to annotate while the others wait for it.
_PATIENCE = timedelta(days=365)
_DESCRIPTION = "made_from.json"


class Processes:
    """
    Exchanges plain Python values between the processes of a run; that of rank 0 (`is_main`) writes files and buys
    labels. It has a process group of its own, on the CPU, since waiting for people or for an endpoint may take longer
    than the time-outs of the group that trains. With more than one process, `torch.distributed` must be initialised,
    and every process must make its `Processes` at the same point.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.is_main = rank == 0
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_on_main(self, value: T) -> list[T] | None:
        """Every process's value, by rank, on rank 0; `None` elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self._group)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """
        Run a function on rank 0 while the others wait, and return what it returned. It must not talk to the other
        processes. If it raises, they raise a `RuntimeError`, so that none waits for ever.
        """
        if self.size == 1:
            return function()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (function(), None)
            except Exception as error:
                outcome = (None, error)
        result, failure = self.broadcast((outcome[0], None if outcome[1] is None else repr(outcome[1])))
        if outcome[1] is not None:
            raise outcome[1]
        if failure is not None:
            raise RuntimeError(f"Rank 0 failed: {failure}. Its own message and traceback stand in its log.")
        return result


class BatchFolder:
    """
    Finished batches of work as Parquet files, beside a description of what they were made from: plain values such as
    model, prompts, seed. What was made from anything else is deleted; without a `description` the folder is taken as
    it is.
    """

    def __init__(self, path: Path, description: Mapping[str, Any] | None = None):
        self.path = path
        text = json.dumps(description, indent=1)
        if description is not None and self.description != json.loads(text):
            for old in path.glob("*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            replace_atomically(path / _DESCRIPTION, lambda temporary: temporary.write_text(text))

    @property
    def description(self) -> dict[str, Any] | None:
        """What the batches were made from; `None` if that is not there, or cannot be read."""
        path = self.path / _DESCRIPTION
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError:
            return None

    @property
    def identity(self) -> str | None:
        """16 hexadecimal digits of the description; `None` if there is none, or it cannot be read."""
        description = self.description
        if description is None:
            return None
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]

    def holds(self, kind: str, num_batches: int) -> bool:
        """Whether all batches of a kind are finished."""
        return all(self._path_of(kind, number).is_file() for number in range(num_batches))

    def load(self, kind: str) -> dict[int, pa.Table]:
        """The finished batches of a kind by number; one that cannot be read counts as not finished."""
        batches = {}
        for path in sorted(self.path.glob(f"{kind}-*.parquet")):
            try:
                batches[int(path.stem.rsplit("-", 1)[1])] = pq.read_table(path)
            except (pa.ArrowException, OSError, ValueError):
                path.unlink()
        return batches

    def save(self, kind: str, number: int, table: pa.Table) -> None:
        """Write a batch."""
        replace_atomically(
            self._path_of(kind, number), lambda temporary: pq.write_table(table, temporary, compression="zstd")
        )

    def _path_of(self, kind: str, number: int) -> Path:
        return self.path / f"{kind}-{number:06d}.parquet"


class SharedWork:
    """
    Does work batch by batch; each round gives one batch to every process (by default this one alone). Results are the
    same whatever the number of processes, as long as a batch depends on its number only. Rank 0 keeps what is finished
    in the `folder`, if there is one; `is_finished` says that everything lies there and is only to be read.
    """

    def __init__(
        self, processes: Processes | None = None, folder: BatchFolder | None = None, is_finished: bool = False
    ):
        self.processes = processes or Processes()
        self._is_finished = is_finished
        self._folder = folder if self.processes.is_main else None

    def run(
        self,
        kind: str,
        num_batches: int,
        make: Callable[[int], T],
        to_table: Callable[[T], pa.Table],
        from_table: Callable[[pa.Table], T],
        only_main: bool = False,
    ) -> Iterator[tuple[int, T | None]]:
        """
        Make the batches of a kind that are not finished.

        Args:
            kind (`str`): name of the work.
            num_batches (`int`): number of batches.
            make (`Callable[[int], T]`): makes the batch with the given number. Every process calls it equally often,
                so that it may hold collective operations; surplus results are dropped.
            to_table (`Callable[[T], pa.Table]`): how to write a batch.
            from_table (`Callable[[pa.Table], T]`): how to read it.
            only_main (`bool`, *optional*, defaults to `False`): whether only rank 0 needs the results, which spares
                the others the memory.

        Yields:
            `tuple[int, T | None]`: number and result of each batch; `None` on the other processes if `only_main`.

        Raises:
            ValueError: if a batch is missing of what should be finished.
        """
        processes = self.processes
        finished = {n: from_table(t) for n, t in self._folder.load(kind).items()} if self._folder else {}
        numbers = processes.broadcast(sorted(finished))
        batches: Mapping[int, T | None] = finished if only_main else processes.broadcast(finished)
        for number in numbers:
            if number < num_batches:
                yield number, batches.get(number)
        missing = sorted(set(range(num_batches)) - set(numbers))
        if missing and self._is_finished:
            raise ValueError(
                f"{self._folder.path if self._folder else 'The folder'} lacks {kind}-{missing[0]:06d}.parquet, which "
                "this run wrote. Put it back, or start a new run."
            )
        for start in range(0, len(missing), processes.size):
            current = missing[start : start + processes.size]
            # A process without a batch of its own makes the last one too: it may be needed for collective operations.
            result = make(current[min(processes.rank, len(current) - 1)])
            results = processes.gather_on_main(result) if only_main else processes.gather(result)
            for place, number in enumerate(current):
                if results is not None and self._folder is not None:
                    self._folder.save(kind, number, to_table(results[place]))
                yield number, None if results is None else results[place]
