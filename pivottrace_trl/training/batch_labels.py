"""Finds the label of every group in a batch: a bought one, the group's own majority answer, or none."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from datasets import LargeList, List, Value

from ..answers import AnswerFormat, MathFormat, Vote
from ..answers.vote import vote_on
from ..labels.state import LedgerCopy
from ..labels.vault import LabelVault
from ..processes import Processes
from ..routing.collapse import CollapseMonitor
from ..routing.router import PoolRouter
from ..routing.triage import Route


logger = logging.getLogger(__name__)

# By default a response counts as right from this reward on. Accuracy rewards are 1 or 0.
_SUCCESS_THRESHOLD = 0.5
TABLE_COLUMNS = ("route", "vote", "agreement", "label_source")


def check_success_threshold(threshold: float | Callable[[float], bool] | None) -> None:
    """Raise `ValueError` if the threshold is neither `None`, a finite number, nor a function."""
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool) and isfinite(threshold)
    if not (threshold is None or is_number or callable(threshold)):
        raise ValueError(
            f"`success_threshold` is {threshold!r}, but must be a number, such as 0.5 for rewards of 0 and 1, or a "
            "function from a reward to whether the response is right."
        )


@dataclass(frozen=True)
class BatchLabels:
    """
    What the reward functions may see of one batch. Groups are those of all processes, as a group may be split over two
    processes. Labels are for the completions of this process.

    Attributes:
        labels (`list[dict[str, Any] | None]`): label column and locked columns -> value for each completion; `None`
            without a bought label or a trusted vote, so that no reward is given.
        is_bought (`list[bool]`): whether the label of each completion was bought.
        votes (`list[Vote]`): vote of each group; empty in evaluation, which adds no evidence.
        rows (`list[int]`): row of the pool for each group.
        is_annotated (`list[bool]`): whether the label of each group was bought.
        first (`int`): place of the first completion of this process among those of all processes.
    """

    labels: list[dict[str, Any] | None]
    is_bought: list[bool]
    votes: list[Vote]
    rows: list[int]
    is_annotated: list[bool]
    first: int = 0


@dataclass
class LabelRouter:
    """
    Finds the label of every group in a batch, from the ledger or else as the majority answer of the group, and records
    votes and rewards as evidence.

    Args:
        router ([`PoolRouter`]): routes, ledger and evidence of the pool.
        label_column (`str`): column under which the reward functions expect the label, also for pseudo-labels.
        locked_columns (`Sequence[str]`): columns that are shown only with a bought label; otherwise they are `None`.
        vault ([`LabelVault`], *optional*): holds the locked columns. Without one they are never shown.
        num_generations (`int`): size of a group.
        answer_format ([`AnswerFormat`]): finds answers, compares them, and converts the majority answer to a label.
        label_feature (`datasets.Value`, *optional*): type of the label column. Defaults to a string.
        processes ([`Processes`]): processes over which the batch is distributed.
        is_training (`Callable[[], bool]`): whether the current batch is used for training. In evaluation, bought
            labels are shown and there are no votes.
        success_threshold (`float` or `Callable[[float], bool]`, *optional*): reward from which on a response counts as
            right, or a function that decides. Defaults to 0.5.
        buy (`Callable[[list[int]], list[int]]`, *optional*): buys labels for the groups of some rows on rank 0, once
            their votes are known, and returns the rows of the bought labels.
        has_pseudo_labels (`bool`): whether votes are used as labels. They are not if the verifier requires a locked
            column.
        num_withheld (`int`): number of groups of the latest batch that got no reward.
        monitor ([`CollapseMonitor`]): pauses pseudo-labels when they do harm.
    """

    router: PoolRouter
    label_column: str
    locked_columns: Sequence[str]
    vault: LabelVault | None
    num_generations: int
    answer_format: AnswerFormat = field(default_factory=MathFormat)
    label_feature: Any = None
    processes: Processes = field(default_factory=Processes)
    is_training: Callable[[], bool] = lambda: True
    buy: Callable[[list[int]], list[int]] | None = None
    has_pseudo_labels: bool = True
    success_threshold: float | Callable[[float], bool] | None = None
    num_withheld: int = 0
    monitor: CollapseMonitor = field(default_factory=CollapseMonitor)
    _latest: tuple[object, BatchLabels] | None = None

    def resolve(
        self,
        rows: Sequence[int],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
    ) -> BatchLabels:
        """
        Find the labels of a batch and, in training, record its votes as evidence.

        Args:
            rows (`Sequence[int]`): row of the pool for each completion. The completions of a group are consecutive,
                also from one process to the next.
            completions (`Sequence`): completions of this process, plain or conversational.
            log_metric (`Callable[[str, float], None]`, *optional*): logs a scalar with the trainer's metrics.

        Raises:
            RuntimeError: if the completions do not form whole groups.
        """
        # All reward functions are called with the same list in turn, and the vote takes place once.
        if self._latest is not None and self._latest[0] is completions:
            return self._latest[1]
        if self.is_training():
            batch = self._hold_votes(rows, completions, log_metric)
        else:
            batch = BatchLabels(self._with_locked(rows, self._bought(rows)), self._is_bought(rows), [], [], [])
            self.num_withheld = sum(label is None for label in batch.labels)
        self._latest = (completions, batch)
        return batch

    def table(self, batch: BatchLabels) -> dict[str, list[Any]]:
        """
        What the completions table of the trainer shows of a batch, one value for each completion of this process.

        Returns:
            `dict[str, list]`: `route` of the prompt, `vote` (majority answer of the group, `None` without one),
            `agreement` with it in `[0, 1]`, and `label_source`: `"bought"`, `"own"`, `"vote"` or `"none"`. No label is
            in it. All `None` in evaluation, which holds no vote.
        """
        num = len(batch.labels)
        if not batch.votes:
            return {name: [None] * num for name in TABLE_COLUMNS}
        rows, own = [], self.router.ledger.own_ids
        for index, label in enumerate(batch.labels):
            group = (batch.first + index) // self.num_generations
            vote, row = batch.votes[group], batch.rows[group]
            source = "none" if label is None else "vote"
            if batch.is_bought[index]:
                source = "own" if self.router.prompt_ids[row] in own else "bought"
            route = Route(self.router.routes[row]).name.lower()
            rows.append((route, vote.answer, round(float(vote.agreement), 4), source))
        return dict(zip(TABLE_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))

    def unlocked(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Label and locked columns of rows whose label was bought; empty if the label does not fit its column."""
        return [label or {} for label in self._with_locked(rows, self._bought(rows))]

    def _hold_votes(
        self, rows: Sequence[int], completions: Sequence[Any], log_metric: Callable[[str, float], None] | None
    ) -> BatchLabels:
        size = self.num_generations
        answers = [self.answer_format.extract(_text(completion)) for completion in completions]
        shares = self.processes.gather((list(rows), answers))
        all_rows = [int(row) for share, _ in shares for row in share]
        all_answers = [answer for _, share in shares for answer in share]
        groups = [all_rows[start : start + size] for start in range(0, len(all_rows), size)]
        if any(len(group) != size or len(set(group)) != 1 for group in groups):
            raise RuntimeError(
                f"Expected groups of {size} completions of the same prompt, got rows {all_rows}. Another sampler "
                "than `PivotRoutedSampler` made this batch."
            )
        group_rows = [group[0] for group in groups]

        def hold() -> list[Vote]:
            # In one process only, as the comparison of hostile answers depends on the time that it takes.
            starts = range(0, len(all_answers), size)
            return [vote_on(all_answers[start : start + size], self.answer_format) for start in starts]

        def decide() -> list[dict[str, Any] | None]:
            return [self._label(row, vote) for row, vote in zip(group_rows, votes, strict=True)]

        votes = self.processes.on_main(hold)
        self.router.update_votes(group_rows, [vote.agreement for vote in votes], [vote.answer for vote in votes])
        self.router.values.update_groups(group_rows, [vote.sizes for vote in votes], size)
        if self.buy is not None:
            num_bought = self._buy(self.buy, group_rows)
            if log_metric is not None:
                log_metric("pivottrace/labels_bought_after", num_bought)
        labels = [label for label in self.processes.on_main(decide) for _ in range(size)]
        is_annotated = self._is_bought(group_rows)
        self.num_withheld = sum(label is None for label in labels) // size
        if log_metric is not None:
            log_metric("pivottrace/vote_agreement", float(np.mean([vote.agreement for vote in votes])))
            log_metric("pivottrace/withheld_ratio", self.num_withheld / len(groups))
        first = sum(len(share) for share, _ in shares[: self.processes.rank])
        shown = self._with_locked(rows, labels[first : first + len(rows)])
        return BatchLabels(shown, self._is_bought(rows), votes, group_rows, is_annotated, first)

    def _buy(self, buy: Callable[[list[int]], list[int]], rows: list[int]) -> int:
        """Buy labels on rank 0, and send them to every process."""
        router = self.router
        bought = self.processes.on_main(
            lambda: [(row, router.ledger.label(router.prompt_ids[row]) or {}) for row in buy(rows)]
        )
        if isinstance(router.ledger, LedgerCopy):
            router.ledger.take_over({router.prompt_ids[row]: label for row, label in bought})
            router.mark_labelled([row for row, _ in bought])
        return len(bought)

    def _with_locked(
        self, rows: Sequence[int], labels: Sequence[dict[str, Any] | None]
    ) -> list[dict[str, Any] | None]:
        """Add the locked columns to the labels: the values of the row if its label was bought, otherwise `None`."""
        bought = list(dict.fromkeys(row for row in rows if self.router.label(row) is not None))
        locked: dict[int, dict[str, Any]] = {}
        if self.vault is not None and bought:
            ids = [self.router.prompt_ids[row] for row in bought]
            locked = dict(zip(bought, self.vault.unlock(self.router.ledger, ids), strict=True))
        nothing = dict.fromkeys(self.locked_columns)
        return [
            None if label is None else {**nothing, **locked.get(row, {}), **label}
            for row, label in zip(rows, labels, strict=True)
        ]

    def _is_bought(self, rows: Sequence[int]) -> list[bool]:
        return [label is not None for label in self._bought(rows)]

    def _bought(self, rows: Sequence[int]) -> list[dict[str, Any] | None]:
        labels = [self.router.label(row) for row in rows]
        return [None if label is None else self._typed(label.get(self.label_column)) for label in labels]

    def _typed(self, value: Any) -> dict[str, Any] | None:
        """A label in the type of its column: what people typed is a text, what the dataset held has its type."""
        is_text = self.label_feature is None or self.label_feature in (Value("string"), Value("large_string"))
        if isinstance(value, str) and not is_text:
            try:
                value = self._to_label(value, self.label_feature)
            except ValueError as error:
                logger.warning("A bought label is not used: %s", error)
                return None
        return {self.label_column: value}

    def is_success(self, reward: float | None) -> bool:
        """Whether a reward says that the response is right. `None` is no judgement, and counts as no success."""
        if reward is None:
            return False
        if callable(self.success_threshold):
            return bool(self.success_threshold(float(reward)))
        return float(reward) >= (_SUCCESS_THRESHOLD if self.success_threshold is None else self.success_threshold)

    def label_of(self, answer: str) -> dict[str, Any] | None:
        """The label for an answer; `None` if it does not fit the type of labels ("about 5" for an integer)."""
        try:
            return {self.label_column: self._to_label(answer, self.label_feature)}
        except ValueError:
            return None

    def _label(self, row: int, vote: Vote) -> dict[str, Any] | None:
        (bought,) = self._bought([row])
        if bought is not None:
            return bought
        if (
            not self.has_pseudo_labels
            or self.monitor.is_paused
            or vote.answer is None
            or vote.agreement < self.router.config.min_agreement
        ):
            return None
        return self.label_of(vote.answer)

    def _to_label(self, answer: str, feature: Any) -> Any:
        if isinstance(feature, List | LargeList):  # a list of accepted answers
            return [self._to_label(answer, feature.feature)]
        return self.answer_format.to_label(answer, feature)

    def record_rewards(
        self, batch: BatchLabels, rewards: Sequence[float | None], log_metric: Callable[[str, float], None] | None
    ) -> None:
        """
        Record the rewards of annotated groups as pass rates, compare their votes with the labels, and let the monitor
        check for a collapse. The rewards are those of the function that reads the label, one for each completion of
        this process.
        """
        if not batch.votes:
            return
        size = self.num_generations
        rewards = [reward for share in self.processes.gather(list(rewards)) for reward in share]
        vote_is_right, weak, accuracies = [], [], []
        for number, (row, vote) in enumerate(zip(batch.rows, batch.votes, strict=True)):
            group = rewards[number * size : (number + 1) * size]
            if any(reward is None for reward in group):
                continue
            is_right = [self.is_success(reward) for reward in group]
            share = float(np.mean(is_right))
            if not batch.is_annotated[number]:
                weak.append(share)
                continue
            accuracies.append(share)
            vote_is_right.append(bool(vote.members) and is_right[vote.members[0]])
            # Only the first group that a label verifies comes from a policy that was not trained on the label.
            if vote.members and self.router.evidence.num_verified[row] < size:
                p_failure = self.router.values.p_failure[row]
                self.router.values.errors.update(vote.agreement, p_failure, not vote_is_right[-1])
            self.router.update_pass_rates([row], [share], num_rollouts=size)
        if vote_is_right and log_metric is not None:
            log_metric("pivottrace/vote_accuracy", float(np.mean(vote_is_right)))
        self.monitor.update(weak, accuracies)
        if log_metric is not None:
            for name, shares in (("right_by_vote", weak), ("right_by_label", accuracies)):
                if shares:
                    log_metric(f"pivottrace/{name}", float(np.mean(shares)))
            log_metric("pivottrace/votes_paused", float(self.monitor.is_paused))


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1].get("content") or ""
