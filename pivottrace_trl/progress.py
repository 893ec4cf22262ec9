"""Progress bars with an estimate of the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """
    Show a progress bar with an estimate of the time left.

    Args:
        description (`str`): what is being done.
        total (`int` or `None`): number of items, if it is known.
        shown (`bool`, *optional*, defaults to `True`): whether to show it.

    Yields:
        `Callable[[int], None]`: to be called with the number of items just finished.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
