"""What the events of a ledger amount to. Knows no database."""

import json
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from .file import Event


@dataclass
class LedgerState:
    """
    State after a number of events.

    Attributes:
        last_event (`int`): the latest event taken up.
        digest (`str`): its digest, which depends on all events before it.
        settings (`dict[str, Any]`): `budget`, `label_column`, `answer_format`; empty before the first run.
        requests (`dict[str, dict[str, Any]]`): what was last asked about each prompt that was ever asked about.
        open_ids (`dict[str, None]`): prompts that are asked for and not answered.
        labels (`dict[str, dict[str, Any]]`): label column -> value of each answered prompt.
        authors (`dict[str, str]`): who answered it.
        closed (`dict[str, str]`): prompts that nobody is asked for again, and why.
        paid (`dict[str, tuple[int, int]]`): prompts that were paid for, also if the answer was undone: the event of
            the first answer, and the routing that asked for it (see [`~LedgerState.is_known`]).
        num_skips (`dict[str, int]`): how often each prompt was skipped.
    """

    last_event: int = 0
    digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    open_ids: dict[str, None] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    paid: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_skips: dict[str, int] = field(default_factory=dict)
    _routings: dict[str, int] = field(default_factory=dict)

    def is_known(self, identity: str, routing: int, start: int) -> bool:
        """
        Whether a run knew the answer to a prompt after one of its routings. A run that was interrupted goes back to
        its last checkpoint, while the ledger keeps the labels that were bought later; it takes them up where it asks
        for them again.

        Args:
            identity (`str`): the prompt.
            routing (`int`): epoch of the routing; -1 is the probe set, before the first.
            start (`int`): the latest event when the run began; what was answered by then was known from the start.

        Returns:
            `bool`
        """
        event, asked = self.paid.get(identity, (None, 0))
        return event is not None and (event <= start or asked <= routing)

    def fold(self, event: Event, undone: str | None) -> None:
        """
        Take up the next event.

        Args:
            event ([`Event`]): the event.
            undone (`str`, *optional*): kind of the event that it undoes.
        """
        self.last_event, self.digest = event.event_id, event.digest
        kind, identity = event.kind, event.prompt_id or ""
        value: Any = json.loads(event.value) if event.value else None
        if kind == "settings":
            self.settings = value
        elif kind == "request":
            # Of a million requests the words are the same: they are kept once.
            words = ("purpose", "route")
            self.requests[identity] = {intern(k): intern(v) if v and k in words else v for k, v in value.items()}
            self._routings[identity] = -1 if value["purpose"] == "probe" else event.epoch or 0
            self.open_ids[identity] = None
        elif kind == "withdraw":
            self.open_ids.pop(identity, None)
        elif kind == "answer":
            self.labels[identity] = value
            self.authors[identity] = event.author or ""
            self.paid.setdefault(identity, (event.event_id, self._routings.get(identity, -1)))
            self.closed.pop(identity, None)
            self.open_ids.pop(identity, None)
        elif kind in ("decline", "broken"):
            self.closed[identity] = kind
            self.open_ids.pop(identity, None)
        elif kind == "skip":
            self.num_skips[identity] = self.num_skips.get(identity, 0) + 1
        elif kind == "undo" and undone == "skip":
            self.num_skips[identity] -= 1
        elif kind == "undo" and undone == "broken":
            if self.closed.pop(identity, None):
                self.open_ids[identity] = None
        elif kind == "undo":
            self.labels.pop(identity, None)
            self.authors.pop(identity, None)
            self.open_ids[identity] = None
