from .answers import (
    AnswerFormat,
    AnswerReader,
    ChoiceFormat,
    MathFormat,
    NumberFormat,
    Reading,
    TextFormat,
    Vote,
    is_correct,
    majority_vote,
)
from .answers.metric import MathAccuracy
from .callback import PivotDensityCallback
from .estimators import (
    ESTIMATORS,
    RAUQ,
    CalibratedEstimator,
    CoE,
    Consistency,
    Estimator,
    ForkingTokens,
    MeanEntropy,
    PivotCount,
    PivotDensity,
    PivotEntropy,
    ProbeCalibrated,
    RandomScore,
    ResponseLength,
    SelfCertainty,
    TotalEntropy,
    get_estimator,
)
from .labels.endpoint import EndpointAnnotator
from .labels.exchange import AnnotationStatus, ImportReport, annotation_status, export_queue, import_answers
from .labels.ledger import AnnotationLedger
from .labels.oracles import CallableAnnotator
from .labels.queries import Answer, Oracle, Outcome, Query
from .labels.vault import LabelVault
from .offline import PoolTriage, triage_pool
from .pool import drop_duplicates, pool_fingerprint, pool_ids, prompt_id
from .report.record import RunRecorder
from .routing.calibration import Calibration
from .routing.collapse import CollapseMonitor
from .routing.router import PoolRouter
from .routing.sampler import PivotRoutedSampler
from .routing.triage import (
    Evidence,
    Route,
    TriageConfig,
    TriageResult,
    assign_routes,
    choose_probes,
    rank_pool,
    resolve_budget,
)
from .scoring.scorer import PoolScorer, PoolScores
from .tracing.attention import AttentionStatistics
from .tracing.attention_tracer import AttentionCapture, AttentionTracer
from .tracing.rollout_pass import trace_rollouts
from .tracing.rollouts import Rollout, generate_rollouts
from .tracing.trace import OPTIONAL_SIGNALS, ResponseTrace

__version__: str

__all__ = [
    "AnnotationLedger",
    "AnnotationStatus",
    "Answer",
    "AnswerFormat",
    "AnswerReader",
    "AttentionCapture",
    "AttentionStatistics",
    "AttentionTracer",
    "CalibratedEstimator",
    "Calibration",
    "CallableAnnotator",
    "ChoiceFormat",
    "CoE",
    "CollapseMonitor",
    "Consistency",
    "ESTIMATORS",
    "EndpointAnnotator",
    "Estimator",
    "Evidence",
    "ForkingTokens",
    "ImportReport",
    "LabelVault",
    "MathAccuracy",
    "MathFormat",
    "MeanEntropy",
    "NumberFormat",
    "OPTIONAL_SIGNALS",
    "Oracle",
    "Outcome",
    "PivotCount",
    "PivotDensity",
    "PivotDensityCallback",
    "PivotEntropy",
    "PivotRoutedSampler",
    "PoolRouter",
    "PoolScorer",
    "PoolScores",
    "PoolTriage",
    "ProbeCalibrated",
    "Query",
    "RAUQ",
    "RandomScore",
    "Reading",
    "ResponseLength",
    "ResponseTrace",
    "Rollout",
    "Route",
    "RunRecorder",
    "SelfCertainty",
    "TextFormat",
    "TotalEntropy",
    "TriageConfig",
    "TriageResult",
    "Vote",
    "annotation_status",
    "assign_routes",
    "choose_probes",
    "drop_duplicates",
    "export_queue",
    "generate_rollouts",
    "get_estimator",
    "import_answers",
    "is_correct",
    "majority_vote",
    "pool_fingerprint",
    "pool_ids",
    "prompt_id",
    "rank_pool",
    "resolve_budget",
    "trace_rollouts",
    "triage_pool",
]
