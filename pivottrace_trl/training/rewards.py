"""Wraps the user's reward functions, so that they see only the labels that a batch may have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .batch_labels import LabelRouter


# Column with the pool's row of each training example. Evaluation data does not have it.
ROW_COLUMN = "pivottrace_row"


def check_number(reward_func: Callable, rewards: Sequence[float | None], num_completions: int) -> None:
    """Raise `ValueError` if the numbers of rewards and completions differ."""
    if len(rewards) != num_completions:
        raise ValueError(
            f"The reward function {reward_func!r} returned {len(rewards)} rewards for {num_completions} "
            "completions. It must return exactly one for each completion it is passed."
        )


class RoutedReward:
    """
    A reward function that never receives a label that was not bought, nor anything else that might reveal it.

    Batches of the pool carry its row numbers. Completions without a trusted label get `None`, and the function does
    not see them. The others are passed on with the bought label or the pseudo-label in the label column. Batches
    without row numbers (evaluation on other data) are passed on unchanged. If the function `is_verifier`, its rewards
    on annotated rows decide whether a response is right. If it `needs_locked` columns, it sees annotated rows only.
    """

    def __init__(
        self, reward_func: Callable, label_router: LabelRouter, is_verifier: bool, needs_locked: bool = False
    ):
        self.reward_func = reward_func
        self.label_router = label_router
        self.is_verifier = is_verifier
        self.needs_locked = needs_locked
        self._table_columns: set[str] = set()  # that the function has logged

    def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion; `None` for completions without a reward."""
        columns, spread = self._prepare(prompts, completions, completion_ids, **kwargs)
        return spread(self.reward_func(**columns) if columns else [])

    def _prepare(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> tuple[dict[str, Any], Callable[[Sequence[float | None]], list[float | None]]]:
        """Arguments for the function (`None` if it is not called), and what spreads its rewards over the batch."""
        everything = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        rows = kwargs.pop(ROW_COLUMN, None)
        if rows is None:
            return everything | kwargs, lambda given: given
        log_metric, log_extra = kwargs.get("log_metric"), kwargs.get("log_extra")
        batch = self.label_router.resolve(rows, completions, log_metric)
        shown = [
            index
            for index, label in enumerate(batch.labels)
            if label is not None and (batch.is_bought[index] or not self.needs_locked)
        ]
        columns: dict[str, Any] = {}
        if shown:
            labels = [label for index in shown if (label := batch.labels[index]) is not None]
            columns = _select(everything, shown)
            columns |= _select(kwargs, shown, length=len(completions))
            columns |= {column: [label[column] for label in labels] for column in labels[0]}
            # The completions table needs one value for every completion of the batch.
            if log_extra is not None:

                def log_shown(name: str, values: Sequence[Any]) -> None:
                    self._table_columns.add(name)
                    log_extra(name, _scatter(values, shown, len(completions)))

                columns["log_extra"] = log_shown
        elif log_extra is not None:
            # The completions table would show the values of an earlier batch.
            for name in self._table_columns:
                log_extra(name, [None] * len(completions))

        def spread(given: Sequence[float | None]) -> list[float | None]:
            check_number(self.reward_func, given, len(shown))
            rewards = _scatter(given, shown, len(completions))
            if self.is_verifier:
                self.label_router.record_rewards(batch, rewards, log_metric)
            return rewards

        return columns, spread


class AsyncRoutedReward(RoutedReward):
    """A [`RoutedReward`] for an `async` reward function."""

    async def __call__(  # type: ignore[override]
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion; `None` for completions without a reward."""
        columns, spread = self._prepare(prompts, completions, completion_ids, **kwargs)
        return spread(await self.reward_func(**columns) if columns else [])


def _select(columns: Mapping[str, Any], indices: list[int], length: int | None = None) -> dict[str, Any]:
    """Select entries of every per-completion list. Other values (trainer state, loggers) are passed unchanged."""
    return {
        name: [value[i] for i in indices] if isinstance(value, list) and length in (None, len(value)) else value
        for name, value in columns.items()
    }


def _scatter(values: Sequence[Any], indices: list[int], length: int) -> list[Any]:
    full: list[Any] = [None] * length
    for index, value in zip(indices, values, strict=True):
        full[index] = value
    return full
