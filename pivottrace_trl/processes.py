"""The processes of one run, as `accelerate launch` started them, and what they tell each other."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist


T = TypeVar("T")

# Rank 0 may wait days for people to annotate while the others wait for it.
_PATIENCE = timedelta(days=365)


class Processes:
    """
    Exchanges plain Python values between the processes of a run. It has a process group of its own, on the CPU, since
    waiting for people or for an endpoint may take longer than the time-outs of the group that trains.

    Args:
        rank (`int`, *optional*, defaults to `0`):
            Number of this process.
        size (`int`, *optional*, defaults to `1`):
            Number of processes. With more than one, `torch.distributed` must be initialised, and every process must
            make its `Processes` at the same point.

    Attributes:
        rank (`int`): number of this process.
        size (`int`): number of processes.
        is_main (`bool`): whether this is the process that writes files and buys labels.
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
        Run a function on rank 0 while the others wait.

        Args:
            function (`Callable[[], T]`): what to run; it must not talk to the other processes.

        Returns:
            What it returned, on every process.

        Raises:
            RuntimeError: on the other processes, if it raised on rank 0, so that none waits for ever.
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
