from .endpoint import EndpointAnnotator
from .exchange import ImportReport, export_queue, import_answers
from .ledger import AnnotationLedger
from .oracles import CallableAnnotator
from .panel import AnnotatorPanel
from .queries import Answer, Opinion, Oracle, Outcome, Query
from .status import AnnotationStatus, AuthorStatus, Tally, annotation_status
from .vault import LabelVault

__all__ = [
    "AnnotationLedger",
    "AnnotationStatus",
    "AnnotatorPanel",
    "Answer",
    "AuthorStatus",
    "CallableAnnotator",
    "EndpointAnnotator",
    "ImportReport",
    "LabelVault",
    "Opinion",
    "Oracle",
    "Outcome",
    "Query",
    "Tally",
    "annotation_status",
    "export_queue",
    "import_answers",
]
