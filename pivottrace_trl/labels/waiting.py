"""An oracle for people, who answer through the ledger."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from rich.live import Live
from rich.table import Table

from ..progress import LINE_EVERY, duration, has_bars
from .cascade import consult
from .ledger import AnnotationLedger
from .queries import Answer, Opinion, Oracle, Query


class People:
    """
    People who answer through the ledger, now or later. This oracle returns no answers of its own. With a `share` in
    `(0, 1]`, it waits until that share of the queries is answered, declined or marked broken. An oracle may be asked
    `first`; the share then applies to the queries that it leaves open.
    """

    batch_size = sys.maxsize  # people see the whole queue

    def __init__(
        self,
        ledger: AnnotationLedger,
        share: float | None = None,
        is_shown: bool = True,
        poll_seconds: float = 2.0,
        sleep: Callable[[float], None] = time.sleep,
        first: Oracle | None = None,
    ):
        check_share(share)
        self._ledger, self._share, self._is_shown = ledger, share, is_shown
        self._poll_seconds, self._sleep = poll_seconds, sleep
        self._first = first

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        """Wait, if asked to; the answers are in the ledger."""
        if self._first is not None:
            yield from consult(self._first, queries)
        if self._share is not None:
            self._wait({query.prompt_id for query in queries}.intersection(self._ledger.open_ids), self._share)

    def _wait(self, asked: set[str], share: float) -> None:
        needed = math.ceil(share * len(asked) - 1e-9)
        start, told = time.monotonic(), -LINE_EVERY
        # `Live` takes over the terminal as soon as it is entered, even with nothing to show.
        with Live(refresh_per_second=4, transient=True) if self._is_shown else nullcontext() as live:
            while True:
                self._ledger.refresh()
                num_closed = len(asked.difference(self._ledger.open_ids))
                if num_closed >= needed:
                    return
                waited = time.monotonic() - start
                if live is not None and has_bars(live.console):
                    live.update(_display(self._ledger, num_closed, needed, waited))
                elif live is not None and waited - told >= LINE_EVERY:
                    line = _line(self._ledger, num_closed, needed, waited)
                    live.console.print(line, markup=False, highlight=False, soft_wrap=True)
                    told = waited
                self._sleep(self._poll_seconds)


def check_share(share: float | None, has_people: bool = True) -> None:
    """Raise `ValueError` if this is not a share in `(0, 1]`, or if no people answer the queue."""
    if share is not None and not has_people:
        raise ValueError(
            f"`wait_for_annotations` is {share!r}, but there is nothing to wait for unless people answer the queue. "
            'Pass `annotator="queue"` as well, or leave it out.'
        )
    if share is not None and not 0.0 < share <= 1.0:
        raise ValueError(
            f"`wait_for_annotations` is {share!r}, but must be a share of the queue in (0, 1], such as 0.5. Leave it "
            "out to train without waiting."
        )


def _line(ledger: AnnotationLedger, num_closed: int, needed: int, seconds: float) -> str:
    """What a log is told instead of the table that a terminal shows."""
    return (
        f"Training waits for annotations: {num_closed} of {needed} needed to go on, for {duration(seconds)}. Answer "
        f"with: pivottrace desk {ledger.path.parent}"
    )


def _display(ledger: AnnotationLedger, num_closed: int, needed: int, seconds: float) -> Table:
    table = Table(title="Training waits for annotations", show_header=False)
    table.add_row("answered", f"{num_closed} of {needed} needed to go on")
    table.add_row("in the queue", str(ledger.num_open))
    table.add_row("labels bought", f"{ledger.num_bought} of {ledger.budget}")
    table.add_row("waiting for", duration(seconds))
    if num_closed:
        table.add_row("at this pace", f"{duration(seconds / num_closed * (needed - num_closed))} to go")
    table.add_row("answer with", f"pivottrace desk {ledger.path.parent}")
    return table
