"""What the labels of a run cost and changed, with a few prompts to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import PRIVATE_FOLDER, reading
from ..labels.ledger import AnnotationLedger
from ..labels.pool_file import POOL_FILE, find_question
from ..labels.status import AnnotationStatus, annotation_status
from ..routing.tables import find_routes
from .record import Run
from .status import LabelGains, label_gains


_NUM_SHOWN = 5
_LONGEST = 400  # characters of a text


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt, its bought label if there is one, and what the policy answered at some routing and at the latest."""

    question: str
    label: str | None
    answer_before: str
    answer_now: str
    right_before: float | None  # share of right responses, known of labelled prompts only
    right_now: float | None


@dataclass(frozen=True)
class LabelStory:
    """What the labels of one run cost and changed, and a few of the prompts that were bought, wrong and discarded."""

    run: Run
    status: AnnotationStatus
    gains: LabelGains
    groups: dict[str, list[ShownPrompt]]


def tell_label_story(run: Run) -> LabelStory | None:
    """Read the ledger and the routes of a run; `None` where nothing was routed. Nothing is read that is not bought."""
    path = run.folder / PRIVATE_FOLDER / "ledger.sqlite"
    if not run.routes or not path.is_file():
        return None
    ledger = AnnotationLedger.open(path)
    try:
        return LabelStory(run, annotation_status(ledger), label_gains(ledger), _choose(ledger))
    finally:
        ledger.close()


def _choose(ledger: AnnotationLedger) -> dict[str, list[ShownPrompt]]:
    """
    Up to five prompts of each kind: labelled ones from the most uncertain to the surest, those that are still wrong
    from the worst on, and discarded ones along the ranking.
    """
    tables = []
    for path in find_routes(ledger.path.parent).values():
        with reading(path, "It is no table of routes: remove it, or run again."):
            columns = ["prompt_id", "route", "score", "is_labelled", "pass_rate", "answer"]
            tables.append(pq.read_table(path, columns=columns).to_pydict())
    latest = tables[-1]
    score = np.array(latest["score"], float)
    is_labelled, pass_rate = np.array(latest["is_labelled"], bool), np.array(latest["pass_rate"], float)
    is_discarded = np.array(latest["route"]) == "discard"
    is_known = is_labelled & np.isfinite(pass_rate)
    by_score, by_pass_rate = np.argsort(-score, kind="stable"), np.argsort(pass_rate, kind="stable")
    rows = {
        "Bought": _spread([row for row in by_score if is_known[row]]),
        "Still wrong": [row for row in by_pass_rate if is_known[row] and pass_rate[row] < 0.5][:_NUM_SHOWN],
        "Discarded": _spread([row for row in by_score[::-1] if is_discarded[row]]),
    }
    return {kind: [_show(ledger, tables, int(row)) for row in chosen] for kind, chosen in rows.items() if chosen}


def _spread(rows: Sequence[Any]) -> list[Any]:
    places = np.unique(np.linspace(0, len(rows) - 1, min(_NUM_SHOWN, len(rows))).astype(int))
    return [rows[place] for place in places]


def _show(ledger: AnnotationLedger, tables: Sequence[dict[str, list]], row: int) -> ShownPrompt:
    identity = tables[-1]["prompt_id"][row]
    # The routing that first knew the label tells how the policy did before it was trained on it.
    first = next((table for table in tables if table["is_labelled"][row]), tables[0])
    label = ledger.label(identity)
    return ShownPrompt(
        question=_short(find_question(ledger.path.with_name(POOL_FILE), identity) or identity),
        label=None if label is None else _short(str(label.get(ledger.label_column))),
        answer_before=_short(first["answer"][row]),
        answer_now=_short(tables[-1]["answer"][row]),
        right_before=_known(first["pass_rate"][row]),
        right_now=_known(tables[-1]["pass_rate"][row]),
    )


def _short(text: str | None) -> str:
    """The end of a long text, where a question asks and a solution answers."""
    text = text or "–"
    return text if len(text) <= _LONGEST else f"… {text[-_LONGEST:]}"


def _known(share: float | None) -> float | None:
    return None if share is None or not np.isfinite(share) else share
