"""Triage of a pool without a trainer."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .answers import AnswerFormat
from .answers.format import resolve_format
from .estimators import Estimator, get_estimator
from .estimators.base import check_probes
from .files import check_writable, without_nan, write_json, write_parquet
from .labels.exchange import export_queue
from .labels.ledger import AnnotationLedger
from .labels.oracles import Annotator, resolve_annotator
from .labels.pool_file import POOL_FILE, write_pool
from .labels.vault import LabelVault
from .labels.waiting import People
from .pool import Questions, collect_stream, read_rows
from .routing.router import PoolRouter
from .routing.triage import Route, TriageConfig, TriageResult, resolve_budget
from .scoring.policy import ModelPolicy
from .scoring.scorer import PoolScorer, PoolScores, SurveyExaminer
from .scoring.survey import GREEDY, SAMPLES, Responses, Survey, with_agreement
from .tracing.pivots import find_pivots
from .tracing.rollouts import Rollout
from .tracing.trace import save_traces


# Number of responses per prompt for a score that needs several.
_NUM_SAMPLES = 8


@dataclass(frozen=True)
class PoolTriage:
    """
    Outcome of [`triage_pool`].

    Attributes:
        result ([`TriageResult`]): routes, ranking, thresholds.
        pool_scores ([`PoolScores`]): scores, densities, traces.
        rollouts (`list[Rollout]`): one rollout per prompt.
        responses (`list[str]`): texts of the responses.
        router ([`PoolRouter`]): probes, evidence and ledger.
        seconds (`dict[str, float]`): wall-clock seconds of each stage.
        peak_memory_gb (`float`): highest resident memory of the process so far, in GiB.
        pivot_threshold (`float`): size that a jump of long-range attention must exceed to be a pivot, in attention
            probability.
    """

    result: TriageResult
    pool_scores: PoolScores
    rollouts: list[Rollout]
    responses: list[str]
    router: PoolRouter
    seconds: dict[str, float]
    peak_memory_gb: float
    pivot_threshold: float


@dataclass(frozen=True)
class TriagePlan:
    """The checked arguments of a triage, besides the model. The ledger of the router is open."""

    prompts: Sequence
    texts: Callable[[Sequence[int]], Iterable[str]]
    ledger: AnnotationLedger
    router: PoolRouter
    estimator: Estimator
    answer_format: AnswerFormat
    output_dir: Path


def plan_triage(
    dataset: Dataset | IterableDataset,
    output_dir: str | Path,
    questions: Questions,
    annotation_budget: float | int | str = 0.293,
    label_column: str | None = None,
    estimator: Estimator | str | None = None,
    config: TriageConfig | None = None,
    answer_format: AnswerFormat | str = "math",
    system_prompt: str | None = None,
    annotator: Annotator | str | Sequence[Annotator | str] | None = None,
) -> TriagePlan:
    """
    Check the arguments of [`triage_pool`] and open its ledger before a model is loaded. `questions` holds its
    arguments about prompts.
    """
    if isinstance(dataset, IterableDataset):
        dataset = collect_stream(dataset)
    dataset, prompt_column = questions.build_prompts(dataset, system_prompt), questions.prompt_column
    questions.check_labels(label_column)
    ids = questions.ids(dataset)
    if label_column is not None and label_column not in dataset.column_names:
        raise ValueError(
            f"There is no label column {label_column!r}; the pool has {dataset.column_names}. Name one of them as "
            '`label_column`, or leave it out and let people answer: `annotator="queue"`.'
        )
    vault = LabelVault(dataset, [] if label_column is None else [label_column], ids)
    num_own = 0 if annotator is None else vault.num_labels
    budget = resolve_budget(annotation_budget, len(ids), num_own)
    config = config or TriageConfig()
    estimator, answer_format = get_estimator(estimator), resolve_format(answer_format)
    oracle, has_people = resolve_annotator(annotator, answer_format)
    check_probes(estimator, config.resolve_probe_size(budget, len(ids), num_own), config.discard_ratio)
    output_dir = Path(output_dir)
    check_writable(output_dir)
    ledger = AnnotationLedger(output_dir / "ledger.sqlite", budget, ids, label_column or "solution", answer_format)
    if annotator is None and label_column is not None:
        ledger.take_corrections(vault)
        oracle = vault
    elif vault.num_labels:
        ledger.take_own(vault)
    if has_people or oracle is None:
        oracle = People(ledger, first=oracle)

    def read(rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        return ({"prompt": row[prompt_column]} for row in read_rows(prompts, rows))

    def read_texts(rows: Sequence[int]) -> Iterator[str]:
        return map(questions.text, read_rows(asked, rows))

    prompts, asked = dataset.select_columns(prompt_column), dataset.select_columns(questions.columns)
    write_pool(output_dir / POOL_FILE, ids, read_texts)
    router = PoolRouter(ids, ledger, oracle, config, read, read_texts)
    return TriagePlan(dataset[prompt_column], read_texts, ledger, router, estimator, answer_format, output_dir)


def triage_pool(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    output_dir: str | Path,
    annotation_budget: float | int | str = 0.293,
    prompt_column: str = "prompt",
    label_column: str | None = None,
    estimator: Estimator | str | None = None,
    config: TriageConfig | None = None,
    answer_format: AnswerFormat | str = "math",
    max_completion_length: int = 384,
    batch_size: int = 32,
    progress: bool = True,
    *,
    id_column: str | None = None,
    question_column: str | None = None,
    instruction: str | None = None,
    system_prompt: str | None = None,
    annotator: Annotator | str | Sequence[Annotator | str] | None = None,
) -> PoolTriage:
    """
    Score a pool with one greedy response per prompt and route every prompt.

    With a label column, only the probe set is bought from it. Without one, the probes come first in the annotation
    queue, nothing is discarded, and the rest of the budget is for the most uncertain prompts. With an `annotator`, the
    labels in the column are the user's own: they are free and count as evidence, and the annotator is asked for the
    probes among the other rows. Finished responses and traces are stored, so that a second call continues an
    interrupted one.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The pool. A stream is read once, in bounded memory, into a temporary folder.
        output_dir (`str` or `Path`):
            Folder for `ledger.sqlite`, `pool.parquet`, `routes.parquet`, `traces.parquet`, `queue.jsonl`,
            `summary.json`, and `survey`, where responses and traces are stored as they are made.
        annotation_budget (`float`, `int` or `str`, *optional*, defaults to `0.293`):
            Share of the pool in `(0, 1]`, or number of labels. With an `annotator`, it is a share of the rows without
            a label.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        label_column (`str`, *optional*):
            Column that holds the labels. Only those of the probe set are read; with an `annotator`, all are.
        estimator ([`Estimator`] or `str`, *optional*):
            The score. Defaults to [`TotalEntropy`].
        config ([`TriageConfig`], *optional*):
            Probe set and thresholds.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answers of responses and compares them with labels.
        max_completion_length (`int`, *optional*, defaults to `384`):
            Limit on the length of a response, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of responses generated at a time.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.
        id_column (`str`, *optional*):
            Column of texts or whole numbers, different in each row, from which prompt ids are made.
        question_column (`str`, *optional*):
            Column of bare questions, which people see. Without an `id_column`, prompt ids are made from it.
        instruction (`str`, *optional*):
            Text that training adds to every question. The model gets the prompt of [`build_prompt`]. Ids, and what
            people see, depend on the question alone.
        system_prompt (`str`, *optional*):
            System message of every prompt in training. Ids do not depend on it.
        annotator (`Callable[[list[dict]], list]`, [`Oracle`], `"queue"` or a list of them, *optional*):
            Source of labels, see [`PivotDensityCallback`]. Defaults to the label column, or to people if there is
            none.

    Returns:
        [`PoolTriage`]

    Raises:
        ValueError: if the budget, pool, a column or the model cannot be used. It is raised before anything is
            generated.
    """
    questions = Questions(prompt_column, id_column, question_column, instruction)
    settings = (annotation_budget, label_column, estimator, config, answer_format, system_prompt, annotator)
    plan = plan_triage(dataset, output_dir, questions, *settings)
    return run_triage(plan, model, tokenizer, max_completion_length, batch_size, progress)


def run_triage(
    plan: TriagePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int = 384,
    batch_size: int = 32,
    progress: bool = True,
) -> PoolTriage:
    """Score and route a pool by a plan, see [`triage_pool`]."""
    router, answer_format = plan.router, plan.answer_format
    responses = _survey(plan, model, tokenizer, max_completion_length, batch_size, progress)
    start = time.perf_counter()
    scorer = PoolScorer(plan.estimator, tokenizer.pad_token_id)
    pool_scores = scorer.fit(responses.traces, responses.heads)
    router.update_scores(np.arange(len(plan.prompts)), pool_scores.scores, pool_scores.densities)
    router.suggestions.update({row: answer for row, answer in enumerate(responses.answers) if answer})

    def verify(rows: list[int]) -> list[bool]:
        labels = [router.ledger.label(router.prompt_ids[row]) or {} for row in rows]
        return [
            is_right(responses.answers[row], str(next(iter(label.values()))), answer_format)
            for row, label in zip(rows, labels, strict=True)
        ]

    examiner = SurveyExaminer(responses, scorer, verify)
    result = router.first_routing(examiner, buy=False)
    outcome = PoolTriage(
        result=result,
        pool_scores=examiner.pool_scores or pool_scores,
        rollouts=responses.rollouts,
        responses=responses.texts,
        router=router,
        seconds=responses.seconds | {"triage": time.perf_counter() - start},
        peak_memory_gb=peak_memory_gb(),
        pivot_threshold=scorer.density.threshold or 0.0,
    )
    _write(outcome, plan)
    return outcome


def _survey(
    plan: TriagePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int,
    batch_size: int,
    progress: bool,
) -> Responses:
    """The greedy response to every prompt, with the agreement of sampled ones if the score needs it."""
    make_policy = partial(ModelPolicy, model, tokenizer, max_completion_length, batch_size=batch_size)
    needs, folder = plan.estimator.needs, plan.output_dir / "survey"
    greedy = Survey(folder / GREEDY, make_policy(temperature=0.0), plan.prompts, plan.answer_format, needs)
    responses = greedy.run(progress=progress)
    if "agreement" not in needs:
        return responses
    policy = make_policy(temperature=1.0)
    samples = Survey(folder / SAMPLES, policy, plan.prompts, plan.answer_format, num_responses=_NUM_SAMPLES)
    return with_agreement(responses, samples.run(progress=progress))


def is_right(answer: str | None, label: str, answer_format: AnswerFormat) -> bool:
    """Whether the answer of a response equals a label as it is in the dataset."""
    if answer is None:
        return False
    try:
        return answer_format.are_equivalent(answer_format.read(label).label, answer)
    except ValueError:  # a label that people could not enter, such as a word in a dataset of formulas, or `-2,1`
        return answer == label.strip() or answer_format.are_equivalent(label, answer)


def peak_memory_gb() -> float:
    """Highest resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, `getrusage` also counts the parent process.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    import resource  # does not exist on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _write(outcome: PoolTriage, plan: TriagePlan) -> None:
    output_dir = plan.output_dir
    router, scores = outcome.router, outcome.pool_scores
    threshold = outcome.pivot_threshold
    columns = {
        "row": list(range(len(router.prompt_ids))),
        "prompt_id": router.prompt_ids,
        "prompt": list(plan.texts(range(len(router.prompt_ids)))),
        "response": outcome.responses,
        "num_tokens": [len(r.completion_ids) for r in outcome.rollouts],
        "num_pivots": [int(find_pivots(t.long_range_mass, threshold).sum()) if len(t) else 0 for t in scores.traces],
        "pivot_density": scores.densities.tolist(),
        "score": scores.scores.tolist(),
        "is_probe": np.isin(np.arange(len(router.prompt_ids)), router.probes).tolist(),
        "route": [Route(route).name.lower() for route in outcome.result.routes],
    }
    write_parquet(output_dir / "routes.parquet", columns)
    save_traces(scores.traces, output_dir / "traces.parquet", router.prompt_ids)
    num_queries = export_queue(plan.ledger, output_dir / "queue.jsonl", "jsonl")
    verified = router.evidence.pass_rate[router.evidence.is_labelled]
    summary = {
        "pool_size": len(router.prompt_ids),
        "annotation_budget": router.ledger.budget,
        "annotated": router.ledger.num_bought,
        "routes": outcome.result.counts(),
        "queue": num_queries,
        "own_labels": len(router.ledger.own_ids),
        "probe_success": float(np.nanmean(verified)) if len(verified) else None,
        "calibration_error": outcome.result.calibration.error,
        "score_auroc": outcome.result.calibration.separation,
        "discard_below": outcome.result.discard_below,
        "annotate_above": outcome.result.annotate_above,
        "tokens_generated": sum(columns["num_tokens"]),
        "seconds": {stage: round(value, 2) for stage, value in outcome.seconds.items()},
        "peak_memory_gb": round(outcome.peak_memory_gb, 2),
    }
    write_json(output_dir / "summary.json", without_nan(summary))
