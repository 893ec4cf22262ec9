"""Progress with an estimate of the time left: a bar in a terminal, and now and then a line in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


LINE_EVERY = 30.0
"""Seconds between two lines of a log."""

# Over how many seconds the pace is taken: a batch may take minutes.
_PACE_SECONDS = 600.0


@contextmanager
def progress_bar(
    description: str, total: int | None, shown: bool = True, now: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """
    Show progress on the standard error, with an estimate of the time left: a bar in a terminal or a notebook; where
    that is neither, in the log of a job, a line every half minute. Yields a function that takes the number of items
    just finished; `total` is `None` if the number of items is not known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    has_bar = has_bars(console)
    with Progress(
        *columns,
        console=console,
        disable=not (shown and has_bar),
        get_time=now,
        speed_estimate_period=_PACE_SECONDS,
    ) as progress:
        number = progress.add_task(description, total=total)
        (task,) = progress.tasks
        with _lines(lambda: console.print(describe(task), soft_wrap=True, highlight=False), shown and not has_bar):
            yield lambda count: progress.advance(number, count)


def has_bars(console: Console) -> bool:
    """Whether what is printed may be drawn over later, as in a terminal or a notebook, and not in a log."""
    return console.is_terminal or console.is_jupyter


def describe(task: Task) -> str:
    """The share, the rate and the time left of some work, as a line of a log."""
    done = f"{task.completed:,.0f}"
    if task.total is not None:
        done += f" of {task.total:,.0f} ({task.percentage:.0f}%)"
    elapsed = task.elapsed or 0.0
    # `speed` looks at the last minutes, and knows none before two batches are finished.
    speed = task.speed or (task.completed / elapsed if elapsed else 0.0)
    parts = [f"{task.description}: {done}", f"{duration(elapsed)} so far"]
    if speed:
        parts.insert(1, f"{speed:.3g} a second" if speed >= 1 else f"{1 / speed:.3g} s each")
        if task.remaining:
            parts.append(f"about {duration(task.remaining / speed)} left")
    return ", ".join(parts)


@contextmanager
def _lines(write: Callable[[], None], is_wanted: bool) -> Iterator[None]:
    """Write a line every half minute, from a thread of its own: a batch may take longer."""
    ended = Event()

    def run() -> None:
        while not ended.wait(LINE_EVERY):
            write()

    thread = Thread(target=run, daemon=True)
    if is_wanted:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if is_wanted:
            thread.join()


def duration(seconds: float) -> str:
    """A time in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
