"""The processes of one run, as started by `accelerate launch`: exchanging values, and sharing work."""

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

# Rank 0 may wait for people for days, while the other processes wait for rank 0.
_PATIENCE = timedelta(days=365)
_DESCRIPTION = "made_from.json"


class Processes:
    """
    Exchanges plain Python values between the processes of a run. Rank 0 (`is_main`) writes files and buys labels. A
    separate process group on the CPU is used, since waiting for people or for an endpoint may take longer than the
    time-outs of the group that trains. With several processes, `torch.distributed` must be initialised, and every
    process must make its `Processes` at the same point.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.is_main = rank == 0
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_on_main(self, value: T) -> list[T] | None:
        """The values of all processes, by rank, on rank 0; `None` on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self._group)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """
        Run a function on rank 0 while the other processes wait, and return its result on all. The function must not
        communicate with the other processes. If it raises, they raise a `RuntimeError`, so that none waits forever.
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
    Finished batches of work as Parquet files, with a description of their inputs: plain values such as model, prompts
    and seed. Batches with another description are deleted. Without a `description`, the folder is used as it is.
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
        """The inputs of the batches; `None` if the description is missing or cannot be read."""
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
        """The finished batches of a kind, by number. A batch that cannot be read counts as not finished."""
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
    Does work batch by batch. In each round, every process makes one batch (by default there is only this process). If
    a batch depends only on its number, the results do not depend on the number of processes. Rank 0 stores finished
    batches in the `folder`, if there is one. `is_finished` means that all batches are there, and are only read.
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
                so it may use collective operations. Surplus results are dropped.
            to_table (`Callable[[T], pa.Table]`): converts a batch to a table.
            from_table (`Callable[[pa.Table], T]`): converts a table to a batch.
            only_main (`bool`, *optional*, defaults to `False`): whether only rank 0 needs the results, which saves
                memory on the others.

        Yields:
            `tuple[int, T | None]`: number and result of each batch; `None` on the other processes if `only_main`.

        Raises:
            ValueError: if a batch is missing although all should be finished.
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
            # A process without a batch of its own also makes the last one, as collective operations may need it.
            result = make(current[min(processes.rank, len(current) - 1)])
            results = processes.gather_on_main(result) if only_main else processes.gather(result)
            for place, number in enumerate(current):
                if results is not None and self._folder is not None:
                    self._folder.save(kind, number, to_table(results[place]))
                yield number, None if results is None else results[place]
