"""What the events of a ledger amount to, and what can be read off it. Knows no database."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from sys import intern
from typing import Any

from .file import Event


# What is known of a prompt that nobody asked for.
_UNASKED = json.dumps({"purpose": "annotate", "route": None, "score": None, "suggestion": None})
_ASKED_BY_NOBODY = ("annotate", None, -1)


class JsonValues(Mapping[str, dict[str, Any]]):
    """
    Prompt id -> a value, kept as the text that the file holds. Dictionaries of a million prompts would take gigabytes,
    and most of them are never looked at.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def keep(self, identity: str, text: str) -> None:
        """Keep the value of a prompt in the place of another."""
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
        last_event (`int`): the latest event taken up.
        digest (`str`): its digest, which depends on all events before it.
        settings (`dict[str, Any]`): `budget`, `label_column`, `answer_format`; empty before the first run.
        requests (`JsonValues`): what was last asked about each prompt that was ever asked about.
        open_ids (`dict[str, None]`): prompts that are asked for and not answered.
        labels (`JsonValues`): label column -> value of each answered prompt.
        own (`set[str]`): those of them whose label the user had.
        authors (`dict[str, str]`): who answered it.
        closed (`dict[str, str]`): prompts that nobody is asked for again, and why.
        paid (`dict[str, tuple[int, int]]`): prompts that were paid for, also if the answer was undone: the event of
            the first answer, and the routing that asked for it (see [`~LedgerState.is_known`]).
        num_skips (`dict[str, int]`): how often each prompt was skipped.
        discussed (`set[str]`): prompts on which there are opinions.
        claims (`dict[str, tuple[str, float]]`): who said last that they are answering a prompt, and when (seconds
            since 1970).
        spent (`float`): sum of all prices; what was not used is not charged.
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
    # Purpose, route and routing of what was last asked. Few of a million differ, and each is kept once.
    _askings: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)
    _known_askings: dict[tuple[str, str | None, int], tuple[str, str | None, int]] = field(default_factory=dict)

    def asked_for(self, identity: str | None) -> tuple[str | None, str | None]:
        """Purpose and route of what was last asked about a prompt; `None` where nobody asked."""
        purpose, route, _ = self._askings.get(identity or "", (None, None, -1))
        return purpose, route

    def probe_ids(self) -> set[str]:
        """Prompts that were last asked for as probes."""
        return {identity for identity, (purpose, _, _) in self._askings.items() if purpose == "probe"}

    def is_paid(self, identity: str, routing: int, start: int) -> bool:
        """
        Whether a run that began after the event `start` had paid for a prompt after one of its routings (-1 is the
        probe set, before the first). A run that was interrupted goes back to its last checkpoint, while the ledger
        keeps the labels that were bought later; it takes them up where it asks for them again. What was never asked
        for comes from outside of the run, and counts as paid before it.
        """
        event, asked = self.paid.get(identity, (None, 0))
        return event is not None and (event <= start or asked <= routing)

    def is_known(self, identity: str, routing: int, start: int) -> bool:
        """Whether a run knew the label of a prompt then, see `is_paid`; one that the user had is always known."""
        return identity in self.labels and (identity in self.own or self.is_paid(identity, routing, start))

    def fold(self, event: Event, undone: str | None) -> None:
        """Take up the next event; `undone` is the kind of the event that it undoes."""
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
    """The state of an [`AnnotationLedger`] at some time."""

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
        return replace(self._state, requests=JsonValues(), settings=self._settings)

    @property
    def last_event(self) -> int:
        """Number of the latest event."""
        return self._state.last_event

    def is_known(self, prompt_id: str, routing: int, start: int) -> bool:
        """Whether the label of a prompt is there and was known to a run at a time, see [`LedgerState.is_known`]."""
        return self._state.is_known(prompt_id, routing, start)

    def num_paid(self, routing: int, start: int) -> int:
        """How many prompts a run had paid for at a time, see [`LedgerState.is_paid`]."""
        return sum(self._state.is_paid(prompt_id, routing, start) for prompt_id in self._state.paid)

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
    def spent(self) -> float:
        """What all answers, opinions and declines cost; answers that were not used are not charged."""
        return self._state.spent

    @property
    def bought_ids(self) -> set[str]:
        """Prompts whose label was bought and is known."""
        return self._state.labels.keys() - self._state.own

    @property
    def own_ids(self) -> set[str]:
        """Prompts whose label the user had."""
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
            column stands under the present one.
        """
        label = self._state.labels.get(prompt_id)
        if label is not None and len(label) == 1 and self.label_column not in label:
            return {self.label_column: next(iter(label.values()))}
        return label

    def author(self, prompt_id: str) -> str | None:
        """Who answered a prompt; `None` if nobody did."""
        return self._state.authors.get(prompt_id)

    def asked(self, prompt_id: str) -> dict[str, Any]:
        """What was last asked about a prompt, see [`Query`]; empty if nothing was."""
        return self._state.requests.get(prompt_id, {})

    def purpose(self, prompt_id: str) -> str:
        """`"own"` for a label that the user had, else `"probe"` or `"annotate"`."""
        return "own" if prompt_id in self._state.own else self._state.asked_for(prompt_id)[0] or "annotate"

    def has_declined(self, prompt_id: str) -> bool:
        """Whether the annotator had no answer, or called the problem broken; it is not asked for again."""
        return prompt_id in self._state.closed

    @property
    def closed(self) -> dict[str, str]:
        """Prompts that nobody is asked for again, and why: `"decline"` or `"broken"`."""
        return dict(self._state.closed)

    @property
    def open_ids(self) -> list[str]:
        """Prompts that are asked for and not answered yet, in no order."""
        return list(self._state.open_ids)

    @property
    def num_open(self) -> int:
        """Number of queries that are not answered yet."""
        return len(self._state.open_ids)


class LedgerCopy(LedgerView):
    """
    What processes other than rank 0, which alone opens the file, know of the ledger. It is made anew at each routing.
    """

    def take_over(self, labels: dict[str, dict[str, Any]]) -> None:
        """Take up labels that rank 0 bought since the copy was made; no ledger gets one without a purchase."""
        for identity, label in labels.items():
            self._state.labels.keep(identity, json.dumps(label))
