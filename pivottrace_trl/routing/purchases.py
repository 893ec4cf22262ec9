"""Buys labels during training, for the groups of the current batch, when their value is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .router import PoolRouter
from .triage import Route


logger = logging.get_logger(__name__)


def check_buy(buy: str, has_people: bool) -> None:
    """Raise `ValueError` if `buy` is unknown, or does not work with people."""
    if buy not in ("before", "after"):
        raise ValueError(
            f'`buy` is {buy!r}, but must be `"before"`, to buy labels when the pool is routed, or `"after"`, to buy '
            "them in training when the votes of a group are known."
        )
    if buy == "after" and has_people:
        raise ValueError(
            '`buy="after"` needs labels at once, in the middle of a training step, but people answer later. Leave it '
            "out: at each routing, the queue for people is ordered by the value of a label anyway."
        )


class GroupBuyer:
    """
    Spreads the rest of the annotation budget over the remaining batches of the run. Each batch receives an equal
    share. It is spent on the groups of the batch whose labels have the highest value, and what is not spent is kept
    for later batches. A label that the oracle does not give costs nothing.

    Args:
        router ([`PoolRouter`]):
            Knows the values of labels, and buys them.
        objection (`Callable[[], str | None]`):
            Returns the reason why no labels should be bought now, or `None`.

    Attributes:
        allowance (`float`): number of labels that may be bought now.
    """

    def __init__(self, router: PoolRouter, objection: Callable[[], str | None]):
        self.allowance = 0.0
        self._router, self._objection = router, objection
        self._has_objected = False

    def buy(self, rows: Sequence[int], num_batches: float, epoch: int) -> list[int]:
        """
        Buy the most valuable labels of a batch.

        Args:
            rows (`Sequence[int]`):
                Rows of the groups of the batch. The router already knows their votes.
            num_batches (`float`):
                Number of batches until the end of the run, including this one.
            epoch (`int`):
                Current epoch.

        Returns:
            `list[int]`: rows whose label was bought.

        Raises:
            RuntimeError: if the oracle fails.
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
        """Number of labels that this run may still buy for groups, without those that are reserved for probes."""
        router = self._router
        num_new = int(((router.routes == Route.ANNOTATE) & (router.plan != Route.ANNOTATE)).sum())
        num_pending = sum(map(router.can_be_answered, router.probes.tolist()))
        # Labels that an interrupted run bought after this point are already paid for.
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
        """State for a checkpoint."""
        return {"allowance": self.allowance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.allowance = state["allowance"]
