from .attention import AttentionStatistics
from .attention_tracer import AttentionCapture, AttentionTracer
from .rollout_pass import trace_rollouts
from .rollouts import Rollout, transformers_generator
from .trace import OPTIONAL_SIGNALS, ResponseTrace

__all__ = [
    "AttentionCapture",
    "AttentionStatistics",
    "AttentionTracer",
    "OPTIONAL_SIGNALS",
    "ResponseTrace",
    "Rollout",
    "trace_rollouts",
    "transformers_generator",
]
