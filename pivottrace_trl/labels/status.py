"""Where the annotation stands."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from .ledger import AnnotationLedger


@dataclass(frozen=True)
class AnnotationStatus:
    """
    Where the annotation stands.

    Attributes:
        budget (`int`): labels that may be bought in all.
        bought (`int`): prompts paid for.
        queue (`dict[str, int]`): open queries by purpose, `{"probe": n, "annotate": n}`.
        price (`float`): what all answers cost; those that were not used are not charged.
        answers_by_author (`dict[str, int]`): standing answers of each author, most first.
        broken, declined (`int`): prompts that people called broken, or had no answer to.
        unused (`int`): answers that contradicted another, or came when the budget was spent.
        per_hour (`float`): answers in the last 24 hours per hour between the first and the last of them; 0 if fewer
            than two.
        last_answer (`str` or `None`): time of the latest answer (UTC, ISO 8601).
    """

    budget: int
    bought: int
    queue: dict[str, int]
    price: float
    answers_by_author: dict[str, int]
    broken: int
    declined: int
    unused: int
    per_hour: float
    last_answer: str | None


def annotation_status(ledger: AnnotationLedger) -> AnnotationStatus:
    """
    Read the status from a ledger.

    Args:
        ledger ([`AnnotationLedger`]): the run's ledger.

    Returns:
        [`AnnotationStatus`]
    """
    ledger.refresh()
    events = ledger.events()
    authors = Counter(ledger.author(identity) or "unknown" for identity in ledger.bought_ids)
    times = [datetime.fromisoformat(e["happened_at"]) for e in events if e["kind"] == "answer" and e["happened_at"]]
    since = datetime.now(timezone.utc) - timedelta(hours=24)
    recent = sorted(time for time in times if time.tzinfo and time >= since)
    hours = (recent[-1] - recent[0]).total_seconds() / 3600 if len(recent) > 1 else 0.0
    undone = {event["undoes"] for event in events}
    closed = Counter(e["kind"] for e in events if e["event_id"] not in undone)
    return AnnotationStatus(
        budget=ledger.budget,
        bought=ledger.num_bought,
        queue={"probe": 0, "annotate": 0} | Counter(query.purpose for query in ledger.queue()),
        price=ledger.spent,
        answers_by_author=dict(authors.most_common()),
        broken=closed["broken"],
        declined=closed["decline"],
        unused=closed["unused"],
        per_hour=(len(recent) - 1) / hours if hours else 0.0,
        last_answer=max((e["happened_at"] for e in events if e["kind"] == "answer"), default=None),
    )
