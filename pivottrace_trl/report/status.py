"""What labels cost and what they brought, in words that a person reads in seconds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import pyarrow.parquet as pq

from ..files import reading
from ..labels.ledger import AnnotationLedger
from ..labels.status import AnnotationStatus, AuthorStatus
from ..routing.tables import find_routes


@dataclass(frozen=True)
class LabelGains:
    """
    What the labels of a run brought, by the tables of its routings; bought and own labels alike.

    Attributes:
        num_routings (`int`): routings that training has recorded; 0 if there was none yet.
        num_verified (`int`): labels by which responses were verified.
        pass_rate_at_first (`float` or `None`): mean share of right responses at the routing that first knew the label.
        pass_rate_now (`float` or `None`): the same at the latest routing.
        num_trained (`int`): labels whose prompt was answered by a group of rollouts after that first routing.
        num_upheld (`int`): those of them that most of the latest group says as well.
        trained_by_author (`dict[str, int]`): the former by who gave the label.
        upheld_by_author (`dict[str, int]`): the latter.
        routes (`dict[str, int]`): routes of the labelled prompts now.
    """

    num_routings: int
    num_verified: int
    pass_rate_at_first: float | None
    pass_rate_now: float | None
    num_trained: int
    num_upheld: int
    trained_by_author: dict[str, int]
    upheld_by_author: dict[str, int]
    routes: dict[str, int]


def label_gains(ledger: AnnotationLedger) -> LabelGains:
    """Read what the labels brought from the tables beside a ledger."""
    paths = list(find_routes(ledger.path.parent).values())
    if not paths:
        return LabelGains(0, 0, None, None, 0, 0, {}, {}, {})
    at_first, was_trained = np.zeros(0), np.zeros(0, bool)
    for number, path in enumerate(paths):
        with reading(path, "It is no table of routes: remove it, or run again."):
            table = pq.read_table(path, columns=["prompt_id", "route", "is_labelled", "pass_rate", "agreement"])
        is_labelled, pass_rate = table["is_labelled"].to_numpy(), table["pass_rate"].to_numpy()
        routes = table["route"].to_numpy()
        if number == 0:
            at_first, was_trained = np.full(len(table), np.nan), np.zeros(len(table), bool)
        at_first = np.where(is_labelled & np.isnan(at_first), pass_rate, at_first)
        if path != paths[-1]:
            was_trained |= np.isfinite(at_first) & (routes != "discard")
    rows = np.flatnonzero(is_labelled & np.isfinite(at_first) & np.isfinite(pass_rate))
    trained = np.flatnonzero(is_labelled & was_trained & np.isfinite(table["agreement"].to_numpy()))
    upheld = trained[pass_rate[trained] > 0.5]

    def by_author(chosen: np.ndarray) -> dict[str, int]:
        return dict(Counter(ledger.author(name) or "unknown" for name in table["prompt_id"].take(chosen).to_pylist()))

    return LabelGains(
        num_routings=len(paths),
        num_verified=len(rows),
        pass_rate_at_first=float(at_first[rows].mean()) if len(rows) else None,
        pass_rate_now=float(pass_rate[rows].mean()) if len(rows) else None,
        num_trained=len(trained),
        num_upheld=len(upheld),
        trained_by_author=by_author(trained),
        upheld_by_author=by_author(upheld),
        routes=dict(Counter(routes[is_labelled].tolist())),
    )


def describe_status(status: AnnotationStatus, gains: LabelGains, now: datetime | None = None) -> str:
    """Status and gains as lines of text."""
    lines = list(_describe(status, gains, now or datetime.now(timezone.utc)))
    return "\n".join(f"{name:<10}{text}" for name, text in lines)


def _describe(status: AnnotationStatus, gains: LabelGains, now: datetime) -> Iterator[tuple[str, str]]:
    share = f" ({status.bought / status.budget:.0%})" if status.budget else ""
    own = f"; {status.own} of your own besides" if status.own else ""
    yield "Labels", f"{status.bought} of {status.budget} bought{share}, {status.left} left{own}"
    each = status.price / status.bought if status.bought else 0.0
    yield (
        "Paid",
        f"{status.price:.2f} in all"
        + (
            f", {each:.2f} a label; at this price the {status.left} left cost {each * status.left:.2f}" if each else ""
        ),
    )
    if status.purposes:
        yield "For", ", ".join(f"{t.labels} {_PURPOSES[name]} ({t.price:.2f})" for name, t in status.purposes.items())
        routes = ", ".join(f"{t.labels} {name} ({t.price:.2f})" for name, t in status.routes.items())
        present = ", ".join(f"{count} {route}" for route, count in sorted(gains.routes.items()))
        yield "Routes", f"when asked for: {routes}" + (f"; now: {present}" if present else "")
    num_queries = sum(status.queue.values())
    yield "Queue", f"{num_queries} questions: {status.queue['probe']} probes, {status.queue['annotate']} others"
    yield "Pace", _pace(status, num_queries, now)
    for number, author in enumerate(status.authors):
        yield "" if number else "Authors", _describe_author(author, gains)
    if status.broken or status.declined:
        yield "No answer", f"{status.broken} called broken, {status.declined} declined"
    if status.conflicts or status.over_budget:
        reasons = f"{status.conflicts} contradict a label that stands, {status.over_budget} came over the budget"
        yield "Not used", f"{reasons}: not charged"
    yield "Brought", _describe_gains(gains)


_PURPOSES = {"probe": "as probes", "annotate": "where the policy is unsure"}


def _pace(status: AnnotationStatus, num_queries: int, now: datetime) -> str:
    if status.last_answer is None:
        return "nobody has answered yet"
    since = (now - datetime.fromisoformat(status.last_answer)).total_seconds() / 3600
    text = f"{status.last_hour} answers in the last hour, {status.last_day} in the last 24; the latest {_ago(since)}"
    if num_queries and status.hours_left is not None:
        text += f"; at this pace the queue is empty in {_hours(status.hours_left)}"
    return text


def _ago(hours: float) -> str:
    return "just now" if hours < 1 / 60 else f"{_hours(hours)} ago"


def _hours(hours: float) -> str:
    """A time in words."""
    if hours < 1.5:
        return f"about {max(round(hours * 60), 1)} min"
    return f"about {hours:.0f} h" if hours < 48 else f"about {hours / 24:.0f} days"


def _describe_author(author: AuthorStatus, gains: LabelGains) -> str:
    name = "".join(character for character in author.author if character.isprintable())
    text = f"{name}: {author.answers} labels, {author.price:.2f}"
    if trained := gains.trained_by_author.get(author.author):
        upheld = gains.upheld_by_author.get(author.author, 0)
        text += f"; later rollouts came to {upheld} of {trained}"
    if author.opinions:
        text += f"; {author.opinions_upheld} of {author.opinions} opinions became the label"
    if author.contradicted:
        text += f"; {author.contradicted} contradicted by others"
    return text + (f"; {author.taken_back} taken back" if author.taken_back else "")


def _describe_gains(gains: LabelGains) -> str:
    if not gains.num_routings:
        return "not known yet: no training has used these labels"
    if gains.pass_rate_at_first is None or gains.pass_rate_now is None:
        return "not known yet: no response was verified by these labels"
    text = (
        f"on {gains.num_verified} labelled prompts {gains.pass_rate_at_first:.0%} of responses were right when the "
        f"label came, {gains.pass_rate_now:.0%} at the latest routing"
    )
    if gains.num_trained:
        text += f"; of {gains.num_trained} trained on since, the majority is right on {gains.num_upheld}"
    return text
