"""The state of a ledger as it follows from its events. Knows nothing of the database."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from sys import intern
from typing import Any

from .file import Event


# For a prompt that nobody asked for.
_UNASKED = json.dumps({"purpose": "annotate", "route": None, "score": None, "suggestion": None})
_ASKED_BY_NOBODY = ("annotate", None, -1)


class JsonValues(Mapping[str, dict[str, Any]]):
    """
    Maps prompt ids to values, which are stored as JSON text like in the file. As dictionaries, the values of a million
    prompts would take gigabytes, and most of them are never read.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def keep(self, identity: str, text: str) -> None:
        """Store the value of a prompt, replacing an earlier one."""
        self._texts[identity] = text

    def drop(self, identity: str) -> None:
        """Forget the value of a prompt, if there is one."""
        self._texts.pop(identity, None)

    def __getitem__(self, identity: str) -> dict[str, Any]:
        return json.loads(self._texts[identity])

    def __contains__(self, identity: object) -> bool:
        return identity in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


@dataclass
class LedgerState:
    """
    State after a number of events.

    Attributes:
        last_event (`int`): number of the latest event.
        digest (`str`): digest of the latest event, which depends on all events before it.
        settings (`dict[str, Any]`): `budget`, `label_column`, `answer_format`; empty before the first run.
        requests (`JsonValues`): latest query of each prompt that was ever asked for.
        open_ids (`dict[str, None]`): prompts with an open query.
        labels (`JsonValues`): label column -> value for each answered prompt.
        own (`set[str]`): answered prompts with the user's own label.
        authors (`dict[str, str]`): author of the answer to each answered prompt.
        closed (`dict[str, str]`): prompts that are not asked for again, and why.
        paid (`dict[str, tuple[int, int]]`): prompts that were paid for, even if the answer was undone: the event of
            the first answer, and the routing that asked for it (see [`~LedgerState.is_known`]).
        num_skips (`dict[str, int]`): how often each prompt was skipped.
        discussed (`set[str]`): prompts on which there are opinions.
        claims (`dict[str, tuple[str, float]]`): the last person who claimed a prompt, and when (seconds since 1970).
        spent (`float`): sum of all prices in the user's currency, without answers that were not used.
    """

    last_event: int = 0
    digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    requests: JsonValues = field(default_factory=JsonValues)
    open_ids: dict[str, None] = field(default_factory=dict)
    labels: JsonValues = field(default_factory=JsonValues)
    own: set[str] = field(default_factory=set)
    authors: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    paid: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_skips: dict[str, int] = field(default_factory=dict)
    discussed: set[str] = field(default_factory=set)
    claims: dict[str, tuple[str, float]] = field(default_factory=dict)
    spent: float = 0.0
    # Purpose, route and routing of the latest query. A million prompts share few different values, each stored once.
    _askings: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)
    _known_askings: dict[tuple[str, str | None, int], tuple[str, str | None, int]] = field(default_factory=dict)

    def asked_for(self, identity: str | None) -> tuple[str | None, str | None]:
        """Purpose and route of the latest query of a prompt; `None` if there is none."""
        purpose, route, _ = self._askings.get(identity or "", (None, None, -1))
        return purpose, route

    def probe_ids(self) -> set[str]:
        """Prompts that were last asked for as probes."""
        return {identity for identity, (purpose, _, _) in self._askings.items() if purpose == "probe"}

    def is_paid(self, identity: str, routing: int, start: int) -> bool:
        """
        Whether a run that began after the event `start` had paid for a prompt by the end of one of its routings. The
        probe set, before the first routing, counts as routing -1. An interrupted run goes back to its last checkpoint,
        while the ledger keeps labels that were bought later; the run uses them when it asks for them again. A label
        that was never asked for comes from outside the run, and counts as paid before it.
        """
        event, asked = self.paid.get(identity, (None, 0))
        return event is not None and (event <= start or asked <= routing)

    def is_known(self, identity: str, routing: int, start: int) -> bool:
        """Whether a run knew the label of a prompt at that time, see `is_paid`. The user's own are always known."""
        return identity in self.labels and (identity in self.own or self.is_paid(identity, routing, start))

    def fold(self, event: Event, undone: str | None) -> None:
        """Apply the next event; `undone` is the kind of the event that it undoes."""
        self.last_event, self.digest = event.event_id, event.digest
        kind, identity = event.kind, event.prompt_id or ""
        text = event.value or "{}"
        if kind != "unused":
            self.spent += event.price
        if kind == "settings":
            self.settings = json.loads(text)
        elif kind == "request":
            self.requests.keep(identity, text)
            asking = (event.purpose or "", event.route, -1 if event.purpose == "probe" else event.epoch or 0)
            self._askings[identity] = self._known_askings.setdefault(asking, asking)
            self.open_ids[identity] = None
        elif kind == "withdraw":
            self._close(identity)
        elif kind in ("answer", "own"):
            self.labels.keep(identity, text)
            self.authors[identity] = intern(event.author or "")
            if kind == "own":
                self.own.add(identity)
            else:
                self.paid.setdefault(identity, (event.event_id, self._askings.get(identity, _ASKED_BY_NOBODY)[2]))
            self.closed.pop(identity, None)
            self._close(identity)
        elif kind in ("decline", "broken"):
            self.closed[identity] = kind
            self._close(identity)
        elif kind == "opinion":
            self.discussed.add(identity)
        elif kind == "claim":
            self.claims[identity] = (event.author or "", datetime.fromisoformat(event.happened_at).timestamp())
        elif kind == "skip":
            self.num_skips[identity] = self.num_skips.get(identity, 0) + 1
            if self.claims.get(identity, ("", 0.0))[0] == event.author:
                del self.claims[identity]
        elif kind == "undo" and undone == "skip":
            self.num_skips[identity] -= 1
        elif kind == "undo" and undone == "broken":
            if self.closed.pop(identity, None):
                self.open_ids[identity] = None
        elif kind == "undo":
            self.labels.drop(identity)
            self.authors.pop(identity, None)
            self.own.discard(identity)
            if identity not in self.requests:
                self.requests.keep(identity, _UNASKED)
                self._askings[identity] = _ASKED_BY_NOBODY
            self.open_ids[identity] = None

    def _close(self, identity: str) -> None:
        self.open_ids.pop(identity, None)
        self.claims.pop(identity, None)


class LedgerView:
    """Read access to the state of an [`AnnotationLedger`]."""

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
        """The state as other processes need it, without the open queries."""
        return replace(self._state, requests=JsonValues(), settings=self._settings)

    @property
    def last_event(self) -> int:
        """Number of the latest event."""
        return self._state.last_event

    def is_known(self, prompt_id: str, routing: int, start: int) -> bool:
        """Whether a prompt has a label that a run knew at a given time, see [`LedgerState.is_known`]."""
        return self._state.is_known(prompt_id, routing, start)

    def num_paid(self, routing: int, start: int) -> int:
        """Number of prompts that a run had paid for at a given time, see [`LedgerState.is_paid`]."""
        return sum(self._state.is_paid(prompt_id, routing, start) for prompt_id in self._state.paid)

    @property
    def budget(self) -> int:
        """Number of labels that may be bought in all."""
        return self._settings["budget"]

    @property
    def label_column(self) -> str:
        """Column under which the reward functions expect the label."""
        return self._settings["label_column"]

    @property
    def answer_format(self) -> str:
        """Name of the answer format, such as `"math"`."""
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
    def spent(self) -> float:
        """Cost of all answers, opinions and declines, in the user's currency. Unused answers are not charged."""
        return self._state.spent

    @property
    def bought_ids(self) -> set[str]:
        """Prompts with a label that was bought."""
        return self._state.labels.keys() - self._state.own

    @property
    def own_ids(self) -> set[str]:
        """Prompts with the user's own label."""
        return set(self._state.own)

    @property
    def probe_ids(self) -> set[str]:
        """Prompts that were last asked for as probes, answered or not."""
        return self._state.probe_ids()

    def label(self, prompt_id: str) -> dict[str, Any] | None:
        """
        The label of a prompt, if it was bought or is the user's own.

        Args:
            prompt_id (`str`):
                Id of the prompt.

        Returns:
            `dict[str, Any]` or `None`: label column -> value. An answer that was given when the run had another label
            column is found under the present one.
        """
        label = self._state.labels.get(prompt_id)
        if label is not None and len(label) == 1 and self.label_column not in label:
            return {self.label_column: next(iter(label.values()))}
        return label

    def author(self, prompt_id: str) -> str | None:
        """Author of the answer to a prompt; `None` if there is no answer."""
        return self._state.authors.get(prompt_id)

    def asked(self, prompt_id: str) -> dict[str, Any]:
        """The latest query of a prompt as a dictionary, see [`Query`]; empty if there was none."""
        return self._state.requests.get(prompt_id, {})

    def purpose(self, prompt_id: str) -> str:
        """`"own"` for the user's own label, otherwise `"probe"` or `"annotate"`."""
        return "own" if prompt_id in self._state.own else self._state.asked_for(prompt_id)[0] or "annotate"

    def has_declined(self, prompt_id: str) -> bool:
        """Whether the annotator had no answer or marked the prompt broken, so that it is not asked for again."""
        return prompt_id in self._state.closed

    @property
    def closed(self) -> dict[str, str]:
        """Prompts that are not asked for again, and why: `"decline"` or `"broken"`."""
        return dict(self._state.closed)

    @property
    def open_ids(self) -> list[str]:
        """Prompts with an open query, in no particular order."""
        return list(self._state.open_ids)

    @property
    def num_open(self) -> int:
        """Number of open queries."""
        return len(self._state.open_ids)


class LedgerCopy(LedgerView):
    """
    A copy of the ledger's state for processes other than rank 0, which alone opens the file. It is made anew at each
    routing.
    """

    def take_over(self, labels: dict[str, dict[str, Any]]) -> None:
        """Add labels that rank 0 bought since the copy was made. A ledger itself gets labels only by a purchase."""
        for identity, label in labels.items():
            self._state.labels.keep(identity, json.dumps(label))
