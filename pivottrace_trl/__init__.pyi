from .answers import AnswerFormat, MathAccuracy, TextFormat, is_correct, majority_vote
from .callback import PivotDensityCallback
from .cli.config import PivotTraceConfig
from .estimators import ESTIMATORS, Estimator
from .labels import (
    AnnotationLedger,
    AnnotatorPanel,
    Answer,
    EndpointAnnotator,
    Opinion,
    Oracle,
    Query,
    annotation_status,
    export_queue,
    import_answers,
)
from .offline import PoolTriage, triage_pool
from .pool import build_prompt, drop_duplicates, pool_ids, prompt_id
from .report import RunRecorder
from .routing import PivotRoutedSampler, Route, TriageConfig
from .scoring import PoolScorer
from .tracing import AttentionTracer, ResponseTrace, Rollout, trace_rollouts

__version__: str

__all__ = [
    "AnnotationLedger",
    "AnnotatorPanel",
    "Answer",
    "AnswerFormat",
    "AttentionTracer",
    "ESTIMATORS",
    "EndpointAnnotator",
    "Estimator",
    "MathAccuracy",
    "Opinion",
    "Oracle",
    "PivotDensityCallback",
    "PivotRoutedSampler",
    "PivotTraceConfig",
    "PoolScorer",
    "PoolTriage",
    "Query",
    "ResponseTrace",
    "Rollout",
    "Route",
    "RunRecorder",
    "TextFormat",
    "TriageConfig",
    "annotation_status",
    "build_prompt",
    "drop_duplicates",
    "export_queue",
    "import_answers",
    "is_correct",
    "majority_vote",
    "pool_ids",
    "prompt_id",
    "trace_rollouts",
    "triage_pool",
]
