"""Triage of a pool without a trainer."""

import copy
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .answers import AnswerFormat, majority_vote
from .answers.format import resolve_format
from .estimators import Estimator, get_estimator
from .files import check_writable, replace_atomically
from .labels.exchange import export_queue
from .labels.ledger import AnnotationLedger
from .labels.vault import LabelVault
from .labels.waiting import People
from .pool import pool_ids, prompt_text, read_rows
from .routing.router import PoolRouter
from .routing.triage import Route, TriageConfig, TriageResult, resolve_budget
from .scoring.scorer import PoolScorer, PoolScores
from .tracing.pivots import find_pivots
from .tracing.rollouts import Rollout, generate_rollouts, transformers_generator
from .tracing.trace import ResponseTrace, save_traces


# Responses sampled for a score that needs several of them.
_NUM_SAMPLES = 8


@dataclass(frozen=True)
class PoolTriage:
    """
    Outcome of [`triage_pool`].

    Attributes:
        result ([`TriageResult`]): routes, ranking, thresholds.
        pool_scores ([`PoolScores`]): scores, densities, traces.
        rollouts (`list[Rollout]`): one response per prompt.
        responses (`list[str]`): their texts.
        router ([`PoolRouter`]): probes, evidence and ledger.
        seconds (`dict[str, float]`): wall-clock time of each stage.
        peak_memory_gb (`float`): highest resident memory of the process so far, in GiB.
        pivot_threshold (`float`): height of a jump of long-range attention that makes a pivot.
    """

    result: TriageResult
    pool_scores: PoolScores
    rollouts: list[Rollout]
    responses: list[str]
    router: PoolRouter
    seconds: dict[str, float]
    peak_memory_gb: float
    pivot_threshold: float


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | list[dict]]) -> list[list[int]]:
    """
    Tokenize prompts as the model expects them: conversations, and plain questions to a chat model, through the chat
    template; plain text to a base model as it is.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompts (`Sequence[str | list[dict]]`):
            Prompts.

    Returns:
        `list[list[int]]`: token ids of each prompt.
    """
    ids = []
    for prompt in prompts:
        if isinstance(prompt, str) and tokenizer.chat_template is None:
            ids.append(tokenizer(prompt)["input_ids"])
            continue
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    return ids


@dataclass(frozen=True)
class TriagePlan:
    """
    What a triage needs besides a model, checked. See [`plan_triage`].

    Attributes:
        dataset ([`~datasets.Dataset`]): the pool.
        prompt_column (`str`): column that holds the prompts.
        ledger ([`AnnotationLedger`]): opened.
        router ([`PoolRouter`]): routes the pool.
        estimator ([`Estimator`]): the score.
        answer_format ([`AnswerFormat`]): finds and compares answers.
        output_dir (`Path`): folder of the results.
    """

    dataset: Dataset
    prompt_column: str
    ledger: AnnotationLedger
    router: PoolRouter
    estimator: Estimator
    answer_format: AnswerFormat
    output_dir: Path


def plan_triage(
    dataset: Dataset,
    output_dir: str | Path,
    annotation_budget: float | int = 0.293,
    prompt_column: str = "prompt",
    label_column: str | None = None,
    estimator: Estimator | str | None = None,
    config: TriageConfig | None = None,
    answer_format: AnswerFormat | str = "math",
) -> TriagePlan:
    """
    Check what [`triage_pool`] is asked for, and open its ledger, before a model is loaded. The arguments are the same.

    Returns:
        [`TriagePlan`]

    Raises:
        ValueError: for a budget, pool, column, score or folder that cannot be used.
    """
    ids = pool_ids(dataset, prompt_column)
    budget = resolve_budget(annotation_budget, len(ids))
    if label_column is not None and label_column not in dataset.column_names:
        raise ValueError(f"There is no label column `{label_column}`; the pool has {dataset.column_names}.")
    config = config or TriageConfig()
    config.resolve_probe_size(budget, len(ids))
    estimator, answer_format = get_estimator(estimator), resolve_format(answer_format)
    output_dir = Path(output_dir)
    check_writable(output_dir)
    ledger = AnnotationLedger(output_dir / "ledger.sqlite", budget, ids, label_column or "solution", answer_format)
    vault = None if label_column is None else LabelVault(dataset, [label_column], ids)
    if vault is not None:
        ledger.take_corrections(vault)

    def read(rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        return ({"prompt": row[prompt_column]} for row in read_rows(prompts, rows))

    prompts = dataset.select_columns(prompt_column)
    router = PoolRouter(ids, ledger, vault or People(ledger), config, read)
    return TriagePlan(dataset, prompt_column, ledger, router, estimator, answer_format, output_dir)


def triage_pool(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    output_dir: str | Path,
    annotation_budget: float | int = 0.293,
    prompt_column: str = "prompt",
    label_column: str | None = None,
    estimator: Estimator | str | None = None,
    config: TriageConfig | None = None,
    answer_format: AnswerFormat | str = "math",
    max_completion_length: int = 384,
    batch_size: int = 32,
    progress: bool = True,
) -> PoolTriage:
    """
    Score a pool with one greedy response per prompt and route every prompt.

    With a label column the probe set is bought from it, and only the probe set; without one, the probes stand first in
    the annotation queue, nothing is discarded, and the rest of the budget goes to the most uncertain prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            The pool.
        output_dir (`str` or `Path`):
            Folder for `ledger.sqlite`, `routes.parquet`, `traces.parquet`, `queue.jsonl` and `summary.json`.
        annotation_budget (`float` or `int`, *optional*, defaults to `0.293`):
            Share of the pool in `(0, 1]`, or number of labels.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        label_column (`str`, *optional*):
            Column that holds the labels; it is read for the probe set only.
        estimator ([`Estimator`] or `str`, *optional*):
            The score. Defaults to [`TotalEntropy`].
        config ([`TriageConfig`], *optional*):
            Probe set and thresholds.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answers of responses and compares them with labels.
        max_completion_length (`int`, *optional*, defaults to `384`):
            Longest response in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of responses generated at a time.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        [`PoolTriage`]

    Raises:
        ValueError: for a budget, pool, column or model that cannot be used; before anything is generated.
    """
    plan = plan_triage(
        dataset, output_dir, annotation_budget, prompt_column, label_column, estimator, config, answer_format
    )
    return run_triage(plan, model, tokenizer, max_completion_length, batch_size, progress)


def run_triage(
    plan: TriagePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int = 384,
    batch_size: int = 32,
    progress: bool = True,
) -> PoolTriage:
    """
    Score and route a pool as planned. The arguments are those of [`triage_pool`].

    Returns:
        [`PoolTriage`]
    """
    router, ids = plan.router, plan.router.prompt_ids
    dataset, prompt_column, answer_format = plan.dataset, plan.prompt_column, plan.answer_format
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    scorer = PoolScorer(plan.estimator, tokenizer.pad_token_id)
    seconds = {}
    start = time.perf_counter()
    generation_config = GenerationConfig(
        max_new_tokens=max_completion_length,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
    )
    rollouts = generate_rollouts(
        transformers_generator(model, tokenizer, generation_config),
        tokenize_prompts(tokenizer, dataset[prompt_column]),
        batch_size,
        progress,
    )
    agreement = None
    if "agreement" in scorer.needs:
        sampled = generate_rollouts(
            transformers_generator(model, tokenizer, _sampling(generation_config)),
            [rollout.prompt_ids for rollout in rollouts for _ in range(_NUM_SAMPLES)],
            batch_size,
            progress,
        )
        samples = tokenizer.batch_decode([r.completion_ids for r in sampled], skip_special_tokens=True)
        groups = [samples[start : start + _NUM_SAMPLES] for start in range(0, len(samples), _NUM_SAMPLES)]
        agreement = [majority_vote(group, answer_format).agreement for group in groups]
    seconds["generation"] = time.perf_counter() - start
    start = time.perf_counter()
    pool_scores = scorer(model, rollouts, progress, agreement)
    router.update_scores(np.arange(len(ids)), pool_scores.scores, pool_scores.densities)
    seconds["tracing"] = time.perf_counter() - start
    start = time.perf_counter()
    responses = tokenizer.batch_decode([r.completion_ids for r in rollouts], skip_special_tokens=True)

    answers = [answer_format.extract(response) for response in responses]
    router.suggestions.update({row: answer for row, answer in enumerate(answers) if answer})

    examiner = _FirstResponses(router, scorer, pool_scores.traces, answers, answer_format)
    result = router.first_routing(examiner, buy=False)
    pool_scores = examiner.pool_scores or pool_scores
    seconds["triage"] = time.perf_counter() - start
    threshold = scorer.density.threshold or 0.0
    outcome = PoolTriage(result, pool_scores, rollouts, responses, router, seconds, peak_memory_gb(), threshold)
    _write(outcome, plan.ledger, dataset[prompt_column], plan.output_dir)
    return outcome


class _FirstResponses:
    """Verifies the responses of a triage by the dataset's labels, and lets the estimator learn from the probes."""

    def __init__(
        self,
        router: PoolRouter,
        scorer: PoolScorer,
        traces: list[ResponseTrace],
        answers: list[str | None],
        answer_format: AnswerFormat,
    ):
        self._router, self._scorer, self._traces = router, scorer, traces
        self._answers, self._answer_format = answers, answer_format
        # By what the probes taught; `None` if they taught nothing.
        self.pool_scores: PoolScores | None = None

    def verify(self, rows: list[int]) -> list[bool]:
        labels = [self._router.ledger.label(self._router.prompt_ids[row]) or {} for row in rows]
        return [
            is_right(self._answers[row], str(next(iter(label.values()))), self._answer_format)
            for row, label in zip(rows, labels, strict=True)
        ]

    def learn(self, rows: list[int], was_right: np.ndarray) -> np.ndarray | None:
        if not self._scorer.calibrate(rows, [self._traces[row] for row in rows], was_right):
            return None
        self.pool_scores = self._scorer.score(self._traces)
        return self.pool_scores.scores

    def objection(self) -> str | None:
        return None


def is_right(answer: str | None, label: str, answer_format: AnswerFormat) -> bool:
    """
    Whether the answer of a response is what a label of the dataset says.

    Args:
        answer (`str` or `None`): the answer.
        label (`str`): the label, as it stands in the dataset.
        answer_format ([`AnswerFormat`]): compares them.

    Returns:
        `bool`
    """
    if answer is None:
        return False
    try:
        return answer_format.are_equivalent(answer_format.read(label).label, answer)
    except ValueError:  # a label of the dataset that nobody would be let type: a word among formulas, or `-2,1`
        return answer == label.strip() or answer_format.are_equivalent(label, answer)


def _sampling(generation_config: GenerationConfig) -> GenerationConfig:
    sampling = copy.copy(generation_config)
    sampling.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return sampling


def peak_memory_gb() -> float:
    """Highest resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux `getrusage` also counts the process that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    import resource  # does not exist on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _write(outcome: PoolTriage, ledger: AnnotationLedger, prompts: Sequence, output_dir: Path) -> None:
    router, scores = outcome.router, outcome.pool_scores
    threshold = outcome.pivot_threshold
    columns = {
        "row": list(range(len(router.prompt_ids))),
        "prompt_id": router.prompt_ids,
        "prompt": [prompt_text(prompt) for prompt in prompts],
        "response": outcome.responses,
        "num_tokens": [len(r.completion_ids) for r in outcome.rollouts],
        "num_pivots": [int(find_pivots(t.long_range_mass, threshold).sum()) if len(t) else 0 for t in scores.traces],
        "pivot_density": scores.densities.tolist(),
        "score": scores.scores.tolist(),
        "is_probe": np.isin(np.arange(len(router.prompt_ids)), router.probes).tolist(),
        "route": [Route(route).name.lower() for route in outcome.result.routes],
    }
    replace_atomically(output_dir / "routes.parquet", lambda path: pq.write_table(pa.table(columns), path))
    save_traces(scores.traces, output_dir / "traces.parquet", router.prompt_ids)

    num_queries = export_queue(ledger, output_dir / "queue.jsonl", "jsonl")
    summary = {
        "pool_size": len(router.prompt_ids),
        "annotation_budget": router.ledger.budget,
        "annotated": router.ledger.num_bought,
        "routes": outcome.result.counts(),
        "queue": num_queries,
        "probe_success": float(np.nanmean(router.evidence.pass_rate)) if router.ledger.num_bought else None,
        "calibration_error": _finite_or_none(outcome.result.calibration.error),
        "score_auroc": _finite_or_none(outcome.result.calibration.separation),
        "discard_below": _finite_or_none(outcome.result.discard_below),
        "annotate_above": _finite_or_none(outcome.result.annotate_above),
        "tokens_generated": sum(columns["num_tokens"]),
        "seconds": {stage: round(value, 2) for stage, value in outcome.seconds.items()},
        "peak_memory_gb": round(outcome.peak_memory_gb, 2),
    }
    replace_atomically(output_dir / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))


def _finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
