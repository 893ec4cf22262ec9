"""Long work in numbered parts: spread over the processes, and kept on disk so that it goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .files import replace_atomically
from .processes import Processes


T = TypeVar("T")
_DESCRIPTION = "made_from.json"


class PartsFolder:
    """
    Finished parts as Parquet files beside a description of what they were made from. What was made from anything else
    is deleted.

    Args:
        path (`Path`):
            The folder; made if absent.
        description (`Mapping[str, Any]`, *optional*):
            Plain values that decide what the parts are: model, prompts, seed, settings. Defaults to taking the parts
            as they are.
    """

    def __init__(self, path: Path, description: Mapping[str, Any] | None = None):
        self.path = path
        text = json.dumps(description, indent=1)
        if description is not None and self.description() != json.loads(text):
            for old in path.glob("*"):
                old.unlink()
            replace_atomically(path / _DESCRIPTION, lambda temporary: temporary.write_text(text))

    def description(self) -> dict[str, Any] | None:
        """What the parts were made from; `None` if there are none, or it cannot be read."""
        path = self.path / _DESCRIPTION
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError:
            return None

    @property
    def identity(self) -> str | None:
        """16 hexadecimal digits of the description; `None` if there is none."""
        description = self.description()
        if description is None:
            return None
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]

    def load(self, kind: str) -> dict[int, pa.Table]:
        """The finished parts of a kind by number; one that cannot be read counts as not finished."""
        parts = {}
        for path in sorted(self.path.glob(f"{kind}-*.parquet")):
            try:
                parts[int(path.stem.rsplit("-", 1)[1])] = pq.read_table(path)
            except (pa.ArrowException, OSError, ValueError):
                path.unlink()
        return parts

    def save(self, kind: str, number: int, table: pa.Table) -> None:
        """Write a part."""
        path = self.path / f"{kind}-{number:06d}.parquet"
        replace_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


class SharedWork:
    """
    Does work part by part. Each round gives one part to every process; results are the same whatever the number of
    processes, as long as a part depends on its number only.

    Args:
        processes ([`Processes`], *optional*):
            Who shares the work. Defaults to this process alone.
        folder ([`PartsFolder`], *optional*):
            Where rank 0 keeps what is finished; the others do not touch it. Defaults to keeping nothing.
        is_finished (`bool`, *optional*, defaults to `False`):
            Whether everything is there already and is only to be read.

    Attributes:
        processes ([`Processes`]): who shares the work.
    """

    def __init__(
        self, processes: Processes | None = None, folder: PartsFolder | None = None, is_finished: bool = False
    ):
        self.processes = processes or Processes()
        self._is_finished = is_finished
        self._folder = folder if self.processes.is_main else None

    def run(
        self,
        kind: str,
        num_parts: int,
        make: Callable[[int], T],
        to_table: Callable[[T], pa.Table],
        from_table: Callable[[pa.Table], T],
        only_main: bool = False,
    ) -> Iterator[tuple[int, T | None]]:
        """
        Make the parts that are not finished.

        Args:
            kind (`str`):
                Name of the work.
            num_parts (`int`):
                Number of parts.
            make (`Callable[[int], T]`):
                Makes the part with the given number. Every process calls it equally often, so that it may hold
                collective operations; surplus results are dropped.
            to_table (`Callable[[T], pa.Table]`):
                How to write a part.
            from_table (`Callable[[pa.Table], T]`):
                How to read it.
            only_main (`bool`, *optional*, defaults to `False`):
                Whether only rank 0 needs the results, which spares the others the memory.

        Yields:
            `tuple[int, T | None]`: number and result of each part; `None` on the other processes if `only_main`.

        Raises:
            ValueError: if a part is missing of what should be finished.
        """
        processes = self.processes
        finished = {n: from_table(t) for n, t in self._folder.load(kind).items()} if self._folder else {}
        numbers = processes.broadcast(sorted(finished))
        parts: Mapping[int, T | None] = finished if only_main else processes.broadcast(finished)
        for number in numbers:
            if number < num_parts:
                yield number, parts.get(number)
        missing = sorted(set(range(num_parts)) - set(numbers))
        if missing and self._is_finished:
            raise ValueError(
                f"{self._folder.path if self._folder else 'The folder'} lacks {kind}-{missing[0]:06d}.parquet, which "
                "this run wrote. Put it back, or start a new run."
            )
        for start in range(0, len(missing), processes.size):
            current = missing[start : start + processes.size]
            # A process without a part of its own makes the last one too: it may be needed for collective operations.
            result = make(current[min(processes.rank, len(current) - 1)])
            results = processes.gather_on_main(result) if only_main else processes.gather(result)
            for place, number in enumerate(current):
                if results is not None and self._folder is not None:
                    self._folder.save(kind, number, to_table(results[place]))
                yield number, None if results is None else results[place]
