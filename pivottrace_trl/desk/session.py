"""Hands out questions and records answers. Knows nothing of web pages."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..answers import AnswerFormat
from ..answers.format import format_of_ledger
from ..labels.ledger import AnnotationLedger
from ..labels.queries import Answer, Outcome, Query


# Seconds for which a question that one tab shows is not shown in others.
_CLAIM_SECONDS = 15 * 60.0


@dataclass(frozen=True)
class Shown:
    """The next content of a tab."""

    query: Query | None  # `None` if the queue is empty
    message: str  # result of the last action
    draft: str = ""  # text in the answer box


class DeskSession:
    """
    Hands out questions to tabs and records their answers in the ledger. Safe to use from several threads. Besides the
    ledger, its only state is which tab shows which question, and a restart may lose that. A question that is shown is
    claimed in the ledger, so that it stays in the queue until it is answered. Answers are read in the format that the
    ledger names; your own format must be passed. `now` is a clock in seconds.
    """

    def __init__(
        self,
        ledger: AnnotationLedger,
        answer_format: AnswerFormat | str | None = None,
        price: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ):
        self.ledger = ledger
        self._format = format_of_ledger(ledger.answer_format, answer_format)
        self._price = price
        self._now = now
        self._claims: dict[str, tuple[str, float]] = {}
        self._lock = threading.RLock()

    def next(self, tab: str, author: str = "", message: str = "", after: str | None = None, shown: str = "") -> Shown:
        """
        The question that this tab shows already, if it is still open; otherwise the most valuable one that no other
        tab shows. A prompt that was just skipped (`after`) does not come again at once. The tab itself tells what it
        shows (`shown`), as a restarted desk does not know.
        """
        with self._lock:
            self.ledger.refresh()
            now = self._now()
            taken = {i: owner for i, (owner, since) in self._claims.items() if now - since < _CLAIM_SECONDS}
            own = [i for i, owner in taken.items() if owner == tab] + [shown]
            # Few questions are taken, so a free one is near the beginning of the queue.
            queue = [query for query in self.ledger.queue(len(taken) + 2) if taken.get(query.prompt_id, tab) == tab]
            for identity in own:
                if identity != after and taken.get(identity, tab) == tab and (query := self.ledger.query(identity)):
                    queue.insert(0, query)
            query = next((q for q in queue if q.prompt_id != after), next(iter(queue), None))
            self._claims = {i: claim for i, claim in self._claims.items() if i in taken and claim[0] != tab}
            if query is not None:
                self._claim(tab, author, query)
            elif self.ledger.num_open:
                message = f"{message} All {self.ledger.num_open} open questions are on other screens.".strip()
            return Shown(query, message)

    def _claim(self, tab: str, author: str, query: Query) -> None:
        if self.ledger.claimant(query.prompt_id) is None:
            self.ledger.claim(query.prompt_id, _named(author))
        self._claims[query.prompt_id] = (tab, self._now())

    def preview(self, text: str) -> str:
        """How an answer is read, with formulas between dollar signs; raises `ValueError` if it cannot be read."""
        return self._format.read(text).preview

    def answer(self, tab: str, author: str, prompt_id: str, text: str) -> Shown:
        """Record an answer and show the next question, or the same one with the reason if it cannot be read."""
        try:
            label = self._format.read(text).label
            answer = Answer(prompt_id, {self.ledger.label_column: label}, _named(author), self._price)
        except ValueError as error:
            return self._stay(tab, author, prompt_id, f"Not recorded: {error}.", text)
        (outcome,) = self.ledger.record([answer], self._format)
        standing = (self.ledger.label(prompt_id) or {}).get(self.ledger.label_column)
        other = self.ledger.author(prompt_id)
        message = {
            Outcome.RECORDED: f"Recorded: {label}",
            Outcome.DUPLICATE: f"{other} gave the same answer before.",
            Outcome.CONFLICT: f"{other} answered {standing} before, which counts. Your {label} is kept in the ledger.",
            Outcome.OVER_BUDGET: f"The budget of {self.ledger.budget} labels is spent. Your answer was not kept: "
            "raise `annotation_budget`, start the run once, and answer again.",
            Outcome.UNKNOWN: "Not recorded: this run does not ask for this prompt.",
        }[outcome]
        return self.next(tab, author, message)

    def _stay(self, tab: str, author: str, prompt_id: str, message: str, draft: str) -> Shown:
        with self._lock:
            shown = self.next(tab, author, message)
            query = self.ledger.query(prompt_id)
            return shown if query is None else Shown(query, message, draft)

    def skip(self, tab: str, author: str, prompt_id: str) -> Shown:
        """Move a question to the end of the queue and show the next one."""
        self.ledger.skip(prompt_id, _named(author))
        return self.next(tab, author, "Skipped: it comes again at the end.", after=prompt_id)

    def mark_broken(self, tab: str, author: str, prompt_id: str) -> Shown:
        """Remove a question that cannot be answered from the queue and show the next one."""
        self.ledger.mark_broken(prompt_id, _named(author))
        return self.next(tab, author, "Marked as broken: nobody is asked again.")

    def undo(self, tab: str, author: str) -> Shown:
        """Take back the latest action of a person and show its question again."""
        with self._lock:
            query = self.ledger.undo(_named(author))
            if query is None:
                return self.next(tab, author, "There is nothing to undo.")
            self._claims = {i: claim for i, claim in self._claims.items() if claim[0] != tab}
            self._claim(tab, author, query)
            return Shown(query, "Undone.")

    def progress(self) -> str:
        """Queue and budget in one line."""
        self.ledger.refresh()
        ledger = self.ledger
        return f"{ledger.num_open} in the queue · {ledger.num_bought} of {ledger.budget} labels bought"


def _named(author: str) -> str:
    """The name of a person in the ledger. People without a name share one, so that they can undo answers, too."""
    return author.strip() or "unknown"
