"""What the events of a ledger amount to. Knows no database."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LedgerState:
    """
    State after a number of events.

    Attributes:
        last_event (`int`): the latest event taken up.
        settings (`dict[str, Any]`): `budget`, `label_column`, `answer_format`; empty before the first run.
        requests (`dict[str, dict[str, Any]]`): what was last asked about each prompt that was ever asked about.
        open_ids (`dict[str, None]`): prompts that are asked for and not answered.
        labels (`dict[str, dict[str, Any]]`): label column -> value of each answered prompt.
        authors (`dict[str, str]`): who answered it.
        closed (`dict[str, str]`): prompts that nobody is asked for again, and why.
        paid (`set[str]`): prompts that were paid for, also if the answer was undone.
        num_skips (`dict[str, int]`): how often each prompt was skipped.
    """

    last_event: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    open_ids: dict[str, None] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    paid: set[str] = field(default_factory=set)
    num_skips: dict[str, int] = field(default_factory=dict)

    def fold(self, kind: str, identity: str, value: Any, author: str | None, undone: str | None) -> None:
        """
        Take up the next event.

        Args:
            kind (`str`): its kind.
            identity (`str`): its prompt.
            value (`Any`): its value.
            author (`str`, *optional*): its author.
            undone (`str`, *optional*): kind of the event that it undoes.
        """
        if kind == "settings":
            self.settings = value
        elif kind == "request":
            self.requests[identity] = value
            self.open_ids[identity] = None
        elif kind == "withdraw":
            self.open_ids.pop(identity, None)
        elif kind == "answer":
            self.labels[identity] = value
            self.authors[identity] = author or ""
            self.paid.add(identity)
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
