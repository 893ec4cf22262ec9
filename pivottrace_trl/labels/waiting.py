"""Waiting for people, with a live display."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

from rich.live import Live
from rich.table import Table

from .ledger import AnnotationLedger


class AnnotationWait:
    """
    Waits until enough of the queue is answered, declined or called broken.

    Args:
        share (`float`):
            Share of the queue in `(0, 1]` that must be closed before training goes on.
        poll_seconds (`float`, *optional*, defaults to `2.0`):
            Time between two looks at the ledger.
        is_shown (`bool`, *optional*, defaults to `True`):
            Whether to show the display.
        sleep (`Callable[[float], None]`, *optional*):
            How to wait. Defaults to `time.sleep`.

    Raises:
        ValueError: if the share does not lie in `(0, 1]`.
    """

    def __init__(
        self,
        share: float,
        poll_seconds: float = 2.0,
        is_shown: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not 0.0 < share <= 1.0:
            raise ValueError(
                f"`wait_for_annotations` is {share!r}, but must be a share of the queue in (0, 1], such as 0.5. Leave "
                "it out to train without waiting."
            )
        self._share, self._poll_seconds, self._is_shown, self._sleep = share, poll_seconds, is_shown, sleep

    def __call__(self, ledger: AnnotationLedger) -> None:
        """
        Return when the share of the present queue is closed; at once if it is empty.

        Args:
            ledger ([`AnnotationLedger`]): the ledger that others write to.
        """
        asked = {query.prompt_id for query in ledger.queue()}
        needed = math.ceil(self._share * len(asked) - 1e-9)
        start = time.monotonic()
        # `Live` takes the terminal over as soon as it is entered, also with nothing to show.
        with Live(refresh_per_second=4, transient=True) if self._is_shown else nullcontext() as live:
            while True:
                ledger.refresh()
                num_closed = sum(ledger.query(identity) is None for identity in asked)
                if num_closed >= needed:
                    return
                if live is not None:
                    live.update(_display(ledger, num_closed, needed, time.monotonic() - start))
                self._sleep(self._poll_seconds)


def _display(ledger: AnnotationLedger, num_closed: int, needed: int, seconds: float) -> Table:
    table = Table(title="Training waits for annotations", show_header=False)
    table.add_row("answered", f"{num_closed} of {needed} needed to go on")
    table.add_row("in the queue", str(ledger.num_open))
    table.add_row("labels bought", f"{ledger.num_bought} of {ledger.budget}")
    table.add_row("waiting for", _duration(seconds))
    if num_closed:
        table.add_row("at this pace", f"{_duration(seconds / num_closed * (needed - num_closed))} to go")
    table.add_row("answer with", f"pivottrace desk {ledger.path.parent}")
    return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
