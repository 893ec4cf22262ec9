"""Status of the annotation, for the terminal."""

from rich.console import Console
from rich.table import Table

from ..labels.exchange import AnnotationStatus


def print_status(status: AnnotationStatus) -> None:
    """
    Print where the annotation stands.

    Args:
        status ([`AnnotationStatus`]): the status.
    """
    table = Table(title="Annotation", show_header=False)
    table.add_row("labels bought", f"{status.bought} of {status.budget} ({status.bought / max(status.budget, 1):.0%})")
    table.add_row("in the queue", f"{status.queue['probe']} probes, {status.queue['annotate']} others")
    table.add_row("paid", f"{status.price:.2f}")
    pace = f"{status.per_hour:.1f} an hour over the last day" if status.per_hour else "too few answers to tell"
    table.add_row("throughput", pace)
    if status.per_hour:
        table.add_row("queue done in", f"{sum(status.queue.values()) / status.per_hour:.1f} hours at this pace")
    table.add_row("last answer", status.last_answer or "none yet")
    table.add_row("broken, declined", f"{status.broken}, {status.declined}")
    table.add_row("not used", str(status.unused))
    for author, count in status.answers_by_author.items():
        table.add_row(f"answered by {author}", str(count))
    Console().print(table)
