"""The progress of the annotation, and its cost."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ..answers.format import format_of_ledger, is_built_in
from .ledger import AnnotationLedger
from .queries import Outcome


# Largest number of opinions that are compared with the final labels. If there are more, the latest count.
_NUM_OPINIONS = 1000
_PAID = "answer"
# With this many answers in the last hour, that hour alone determines the pace.
_ENOUGH = 5


@dataclass(frozen=True)
class AuthorStatus:
    """
    The work of one author.

    Attributes:
        author (`str`): name of the author.
        answers (`int`): number of current labels by this author, including the user's own labels.
        price (`float`): total pay, including opinions, declines, and answers that were taken back.
        contradicted (`int`): number of answers by others that contradict a current label by this author.
        taken_back (`int`): number of answers by this author that were undone or replaced.
        opinions (`int`): number of this author's latest opinions on prompts that have a label now.
        opinions_upheld (`int`): number of these opinions that agree with that label.
    """

    author: str
    answers: int
    price: float
    contradicted: int
    taken_back: int
    opinions: int
    opinions_upheld: int


@dataclass(frozen=True)
class Tally:
    """Number of current labels that were bought, and the total price of all answers of that kind."""

    labels: int
    price: float


@dataclass(frozen=True)
class AnnotationStatus:
    """
    The progress of the annotation, and its cost. Prices are in the user's currency.

    Attributes:
        budget (`int`): number of labels that may be bought in all.
        bought (`int`): number of prompts paid for.
        left (`int`): number of labels that may still be bought.
        own (`int`): number of the user's own labels, which cost nothing.
        price (`float`): total price. Answers that were not used are not charged.
        purposes (`dict[str, Tally]`): labels and price by purpose, `"probe"` or `"annotate"`.
        routes (`dict[str, Tally]`): labels and price by the prompt's route when its label was asked for; `"none"` for
            labels that nobody asked for.
        authors (`list[AuthorStatus]`): authors, most answers first.
        queue (`dict[str, int]`): number of open queries by purpose, `{"probe": n, "annotate": n}`.
        broken, declined (`int`): number of prompts that were marked broken, and that annotators had no answer to.
        conflicts (`int`): number of answers that contradict a current label.
        over_budget (`int`): number of answers that came after the budget was spent.
        last_hour, last_day (`int`): number of answers in the last 60 minutes, and in the last 24 hours.
        per_hour (`float`): answers per hour, from the first to the last answer of the last hour, or of the last 24
            hours if the last hour had fewer than five; 0 with fewer than two answers.
        hours_left (`float` or `None`): hours until the queue is empty at this pace.
        last_answer (`str` or `None`): time of the latest answer (UTC, ISO 8601).
    """

    budget: int
    bought: int
    left: int
    own: int
    price: float
    purposes: dict[str, Tally]
    routes: dict[str, Tally]
    authors: list[AuthorStatus]
    queue: dict[str, int]
    broken: int
    declined: int
    conflicts: int
    over_budget: int
    last_hour: int
    last_day: int
    per_hour: float
    hours_left: float | None
    last_answer: str | None


_ANSWERS = """
SELECT e.kind, e.author, e.purpose, e.route, count(*), count(u.event_id), sum(e.price)
FROM events e LEFT JOIN events u ON u.undoes = e.event_id
WHERE e.kind IN ('answer', 'own', 'opinion', 'decline') GROUP BY 1, 2, 3, 4
"""
_TIMES = """
SELECT e.happened_at FROM events e LEFT JOIN events u ON u.undoes = e.event_id
WHERE e.kind = 'answer' AND u.event_id IS NULL AND e.happened_at >= ? ORDER BY e.happened_at
"""
_UNUSED = "SELECT prompt_id, author, json_extract(value, '$.reason') FROM events WHERE kind = 'unused'"
_OPINIONS = "SELECT author, prompt_id, value FROM events WHERE kind = 'opinion' ORDER BY event_id DESC LIMIT ?"


def annotation_status(ledger: AnnotationLedger) -> AnnotationStatus:
    """
    Read the status from a ledger, even while a run writes to it.

    Args:
        ledger ([`AnnotationLedger`]): the run's ledger.

    Returns:
        [`AnnotationStatus`]
    """
    ledger.refresh()
    answers = ledger.select(_ANSWERS)
    unused = ledger.select(_UNUSED)
    reasons = Counter(reason for *_, reason in unused)
    closed = Counter(ledger.closed.values())
    queue = {"probe": 0, "annotate": 0} | Counter(map(ledger.purpose, ledger.open_ids))
    now = datetime.now(timezone.utc)
    times = [
        datetime.fromisoformat(time)
        for (time,) in ledger.select(_TIMES, ((now - timedelta(days=1)).isoformat(timespec="milliseconds"),))
    ]
    last_hour = [time for time in times if time >= now - timedelta(hours=1)]
    per_hour = _pace(last_hour if len(last_hour) >= _ENOUGH else times)
    ((last_answer,),) = ledger.select("SELECT max(happened_at) FROM events WHERE kind = 'answer'")
    return AnnotationStatus(
        budget=ledger.budget,
        bought=ledger.num_bought,
        left=ledger.num_left,
        own=len(ledger.own_ids),
        price=ledger.spent,
        purposes=_tally(
            (purpose or "annotate", *counts) for kind, _, purpose, _, *counts in answers if kind == "answer"
        ),
        routes=_tally((route or "none", *counts) for kind, _, _, route, *counts in answers if kind == "answer"),
        authors=_authors(ledger, answers, unused),
        queue=queue,
        broken=closed["broken"],
        declined=closed["decline"],
        conflicts=reasons[Outcome.CONFLICT.value],
        over_budget=reasons[Outcome.OVER_BUDGET.value],
        last_hour=len(last_hour),
        last_day=len(times),
        per_hour=per_hour,
        hours_left=sum(queue.values()) / per_hour if per_hour else None,
        last_answer=last_answer,
    )


def _pace(times: Sequence[datetime]) -> float:
    """Answers per hour between the first and the last of these times."""
    hours = (times[-1] - times[0]).total_seconds() / 3600 if len(times) > 1 else 0.0
    return (len(times) - 1) / hours if hours else 0.0


def _tally(rows: Iterable[tuple[str, int, int, float]]) -> dict[str, Tally]:
    labels, prices = Counter[str](), defaultdict[str, float](float)
    for name, count, num_undone, price in rows:
        labels[name] += count - num_undone
        prices[name] += price
    return {name: Tally(labels[name], prices[name]) for name in sorted(labels)}


def _authors(ledger: AnnotationLedger, answers: Sequence[Any], unused: Sequence[Any]) -> list[AuthorStatus]:
    standing = Counter(ledger.author(identity) for identity in ledger.bought_ids | ledger.own_ids)
    prices = defaultdict[str, float](float)
    taken_back, contradicted = Counter[str](), Counter[str]()
    for kind, author, _, _, _, num_undone, price in answers:
        prices[author] += price
        taken_back[author] += num_undone if kind == "answer" else 0
    for identity, author, reason in unused:
        if reason == Outcome.CONFLICT.value and (other := ledger.author(identity)) not in (None, author):
            contradicted[other] += 1
    known, upheld = _weigh_opinions(ledger)
    names = sorted(prices, key=lambda author: (-standing[author], author))
    return [
        AuthorStatus(n, standing[n], prices[n], contradicted[n], taken_back[n], known[n], upheld[n]) for n in names
    ]


def _weigh_opinions(ledger: AnnotationLedger) -> tuple[Counter[str], Counter[str]]:
    """Of each author's latest opinions: how many are on prompts that have a label now, and how many agree with it."""
    # A custom format is code, which is not loaded just because a file names it. Then answers must be equal as text.
    answer_format = format_of_ledger(ledger.answer_format) if is_built_in(ledger.answer_format) else None
    known, upheld = Counter[str](), Counter[str]()
    for author, identity, value in ledger.select(_OPINIONS, (_NUM_OPINIONS,)):
        label, said = ledger.label(identity), json.loads(value)["label"]
        if label is None or said is None:
            continue
        texts = str(label.get(ledger.label_column)), str(said)
        known[author] += 1
        upheld[author] += texts[0] == texts[1] or (answer_format is not None and answer_format.are_equivalent(*texts))
    return known, upheld
