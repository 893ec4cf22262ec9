"""What can be read off the state of a ledger, without its file."""

from dataclasses import replace
from typing import Any

from .state import LedgerState


class LedgerView:
    """
    The state of an [`AnnotationLedger`] at some time. Of several processes only rank 0 opens the file; the others
    hold a view, renewed at each routing.

    Args:
        state ([`LedgerState`]): the state.
    """

    def __init__(self, state: LedgerState):
        self._memory: LedgerState | None = state

    @property
    def _state(self) -> LedgerState:
        assert self._memory is not None
        return self._memory

    @property
    def _settings(self) -> dict[str, Any]:
        return self._state.settings

    def snapshot(self) -> LedgerState:
        """The state as other processes need it: without what was asked about open prompts."""
        return replace(self._state, requests={}, settings=self._settings)

    @property
    def last_event(self) -> int:
        """Number of the latest event."""
        return self._state.last_event

    def is_known(self, prompt_id: str, routing: int, start: int) -> bool:
        """Whether the label of a prompt is there and was known to a run at a time, see [`LedgerState.is_known`]."""
        return prompt_id in self._state.labels and self._state.is_known(prompt_id, routing, start)

    def num_paid(self, routing: int, start: int) -> int:
        """How many prompts a run had paid for at a time, see [`LedgerState.is_known`]."""
        return sum(self._state.is_known(prompt_id, routing, start) for prompt_id in self._state.paid)

    @property
    def budget(self) -> int:
        """Number of labels that may be bought in all."""
        return self._settings["budget"]

    @property
    def label_column(self) -> str:
        """Column under which the reward functions expect an answer."""
        return self._settings["label_column"]

    @property
    def answer_format(self) -> str:
        """`"math"` or `"text"`."""
        return self._settings["answer_format"]

    @property
    def num_bought(self) -> int:
        """Number of prompts paid for so far, probes included."""
        return len(self._state.paid)

    @property
    def num_left(self) -> int:
        """Number of labels that may still be bought."""
        return max(self.budget - self.num_bought, 0)

    @property
    def bought_ids(self) -> set[str]:
        """Prompts whose label is known."""
        return set(self._state.labels)

    def label(self, prompt_id: str) -> dict[str, Any] | None:
        """
        The label of a prompt, if it was bought.

        Args:
            prompt_id (`str`):
                Id of the prompt.

        Returns:
            `dict[str, Any]` or `None`: label column -> value. An answer that was given when the run had another label
            column stands under the present one.
        """
        label = self._state.labels.get(prompt_id)
        if label is not None and len(label) == 1 and self.label_column not in label:
            return {self.label_column: next(iter(label.values()))}
        return label

    def author(self, prompt_id: str) -> str | None:
        """Who answered a prompt; `None` if nobody did."""
        return self._state.authors.get(prompt_id)

    def has_declined(self, prompt_id: str) -> bool:
        """Whether the annotator had no answer, or called the problem broken; it is not asked for again."""
        return prompt_id in self._state.closed

    @property
    def num_open(self) -> int:
        """Number of queries that are not answered yet."""
        return len(self._state.open_ids)
