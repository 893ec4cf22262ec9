"""Exports the queue, and imports answers."""

from .exporting import export_queue
from .importing import ImportReport, import_answers


__all__ = ["ImportReport", "export_queue", "import_answers"]
