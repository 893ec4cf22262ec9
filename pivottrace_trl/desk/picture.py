"""The overview of a run, as HTML."""

import base64
from datetime import datetime
from pathlib import Path

from ..labels.ledger import AnnotationLedger
from ..labels.status import annotation_status
from ..report.plots import plot_spend


_PLOTS = {
    "spend.png": "Labels bought over time",
    "route_flow.png": "Routes from epoch to epoch",
    "scores.png": "Scores and pivot densities of the pool, with the thresholds",
    "calibration.png": "How often the policy is right along the ranking",
}


def picture_html(ledger: AnnotationLedger) -> str:
    """Draw the spending, and show it with the plots that the run has written. Images are embedded in the HTML."""
    status = annotation_status(ledger)
    folder = ledger.path.parent
    times = [datetime.fromisoformat(e["happened_at"]) for e in ledger.events() if e["kind"] == "answer"]
    plot_spend(times, ledger.budget, folder / "spend.png")
    pace = f"{status.per_hour:.1f} answers per hour lately" if status.per_hour else "too few answers for a pace"
    parts = [
        f"<p>{status.bought} of {status.budget} labels bought, {sum(status.queue.values())} questions in the queue, "
        f"{pace}, {status.broken} broken, {status.price:.2f} paid.</p>"
    ]
    parts += [_figure(folder / name, title) for name, title in _PLOTS.items()]
    return "".join(parts)


def _figure(path: Path, title: str) -> str:
    if not path.is_file():
        return f"<h3>{title}</h3><p>Not available yet: the run draws it at its next routing.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{data}">'
