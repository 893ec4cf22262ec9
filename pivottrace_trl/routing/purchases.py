"""Labels that are bought when it is known what they are worth: for groups that training has just seen."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .router import PoolRouter
from .triage import Route


logger = logging.get_logger(__name__)


def check_buy(buy: str, has_people: bool) -> None:
    """Raise `ValueError` if labels cannot be bought at this time, or not from those who are asked."""
    if buy not in ("before", "after"):
        raise ValueError(
            f'`buy` is {buy!r}, but must be `"before"`, to buy labels when the pool is routed, or `"after"`, to buy '
            "them in training when the votes of a group are known."
        )
    if buy == "after" and has_people:
        raise ValueError(
            '`buy="after"` needs labels at once, in the middle of a training step, but people answer later. Leave it '
            "out: the queue of people is ordered by what a label is worth anyway, anew at each routing."
        )


class GroupBuyer:
    """
    Spreads what is left of the budget over the groups that the run is still to see. With every batch of groups an even
    share of it is set free; it goes to the groups of the batch whose labels are worth most, and what finds no such
    group is kept for later batches. A label that the oracle does not give costs nothing.

    Args:
        router ([`PoolRouter`]):
            Knows what the labels are worth, and buys them.
        objection (`Callable[[], str | None]`):
            Why no more labels are to be bought now; `None` if nothing speaks against it.

    Attributes:
        allowance (`float`): number of labels that are set free and not bought yet.
    """

    def __init__(self, router: PoolRouter, objection: Callable[[], str | None]):
        self.allowance = 0.0
        self._router, self._objection = router, objection
        self._has_objected = False

    def buy(self, rows: Sequence[int], num_batches: float, epoch: int) -> list[int]:
        """
        Buy what is worth most in a batch. What the oracle does goes for a routing too: if it fails, so does this.

        Args:
            rows (`Sequence[int]`):
                Rows of the groups of the batch, whose votes the router knows.
            num_batches (`float`):
                Number of batches until the end of the run, this one included.
            epoch (`int`):
                The running epoch.

        Returns:
            `list[int]`: rows whose label was bought.
        """
        router, num_left = self._router, self._num_left(epoch)
        self.allowance += max(num_left - self.allowance, 0.0) / max(num_batches, 1.0)
        self.allowance = min(self.allowance, num_left)
        is_settled = router.evidence.is_labelled | router.is_declined
        unknown = [row for row in dict.fromkeys(rows) if not is_settled[row]]
        wanted = router.worth_asking(np.array(unknown, int))[: int(self.allowance + 1e-9)]
        if len(wanted) == 0 or self._is_objected_to():
            return []
        router.request(wanted, epoch, replaces=False)
        router.buy(wanted.tolist())
        bought = [row for row in wanted.tolist() if router.ledger.label(router.prompt_ids[row]) is not None]
        router.mark_labelled(bought)
        self.allowance -= len(bought)
        return bought

    def _num_left(self, epoch: int) -> int:
        """Labels that may still be bought, by what the run knows of; those of probes are not for groups."""
        router = self._router
        num_new = int(((router.routes == Route.ANNOTATE) & (router.plan != Route.ANNOTATE)).sum())
        num_pending = sum(map(router.can_be_answered, router.probes.tolist()))
        # What an interrupted run bought beyond this point is paid for, and is not paid for again.
        num_paid = router.ledger.num_paid(epoch - 1, router.start)
        return max(router.ledger.budget - num_paid - num_new - num_pending, 0)

    def _is_objected_to(self) -> bool:
        objection = self._objection()
        if objection is not None and not self._has_objected:
            logger.warning(
                f"No more labels are bought for now, and {self._router.ledger.num_left} of the budget are left: "
                f"{objection}. Every batch looks again."
            )
        self._has_objected = objection is not None
        return self._has_objected

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"allowance": self.allowance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.allowance = state["allowance"]
