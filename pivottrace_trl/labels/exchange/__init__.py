"""The queue out, answers in."""

from .exporting import export_queue
from .importing import ImportReport, import_answers
from .status import AnnotationStatus, annotation_status


__all__ = ["AnnotationStatus", "ImportReport", "annotation_status", "export_queue", "import_answers"]
