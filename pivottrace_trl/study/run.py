"""A labelled pool to a table of what every score is worth on it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..answers import is_correct, majority_vote
from ..estimators import ESTIMATORS, CalibratedEstimator
from ..files import check_writable, replace_atomically
from ..offline import tokenize_prompts
from ..pool import pool_fingerprint, pool_ids
from ..progress import progress_bar
from ..routing.calibration import Calibration, calibrate
from ..routing.triage import TriageConfig, choose_probes, rank_pool, resolve_budget
from ..tracing.rollout_pass import trace_rollouts
from ..tracing.rollouts import Rollout
from ..tracing.trace import OPTIONAL_SIGNALS, ResponseTrace, load_traces, save_traces
from .metrics import Interval, auroc, bootstrap, purchase, spearman, without_length
from .responses import GREEDY, check_settings, collect_responses


_RESPONSES = "responses"  # folder in that of the study
SHARES = (0.10, 0.293, 0.50)
"""Annotated shares for which the study says what a score would have bought; the middle one is the paper's."""


@dataclass(frozen=True)
class LabelledPool:
    """
    What is known of a pool whose labels are all there. Arrays have shape `(num_prompts,)`.

    Attributes:
        traces (`list[ResponseTrace]`): of the greedy responses, with `agreement` where there are samples.
        is_wrong (`np.ndarray`, `bool`): whether the greedy response is wrong.
        pass_rate (`np.ndarray`, float): share of the samples that are right; NaN without samples.
        vote_is_right (`np.ndarray`, `bool`): whether the majority of the samples is right; `None` without samples.
        num_tokens (`np.ndarray`, int): tokens of the greedy response.
        num_sampled_tokens (`np.ndarray`, int): tokens of all samples together.
    """

    traces: list[ResponseTrace]
    is_wrong: np.ndarray
    pass_rate: np.ndarray
    vote_is_right: np.ndarray | None
    num_tokens: np.ndarray
    num_sampled_tokens: np.ndarray


@dataclass(frozen=True)
class ScoreReport:
    """
    What one score is worth on one pool.

    Attributes:
        scores (`np.ndarray` of shape `(num_prompts,)`): higher = less sure.
        auroc ([`Interval`]): for "the greedy response is wrong".
        auroc_less_length ([`Interval`]): the same after regressing length out.
        auroc_less_baseline ([`Interval`]): AUROC minus that of the response length, paired over prompts.
        spearman ([`Interval`]): rank correlation with failure over the samples; NaN without samples.
        tokens_per_prompt (`float`): tokens generated for it.
        calibration ([`Calibration`]): curve from the probe set.
        calibration_error (`float`): mean distance of that curve from the truth over ten equal stretches of the pool.
        purchases (`list[Purchase]`): what it buys at each of [`SHARES`].
    """

    scores: np.ndarray
    auroc: Interval
    auroc_less_length: Interval
    auroc_less_baseline: Interval
    spearman: Interval
    tokens_per_prompt: float
    calibration: Calibration
    calibration_error: float
    purchases: list


def check_study(
    dataset: Dataset,
    output_dir: Path,
    settings: Mapping[str, Any],
    prompt_column: str,
    label_column: str,
    max_completion_length: int,
    batch_size: int,
    seed: int,
) -> list[str]:
    """
    Check what [`run_study`] is asked for, before a model is loaded. The arguments are the same.

    Returns:
        `list[str]`: id of each prompt.

    Raises:
        ValueError: for a pool, column or folder that cannot be used, or a folder that belongs to another study.
    """
    ids = pool_ids(dataset, prompt_column)
    if label_column not in dataset.column_names:
        raise ValueError(f"There is no label column `{label_column}`; the pool has {dataset.column_names}.")
    check_writable(output_dir)
    settings = dict(settings) | {"pool_id": pool_fingerprint(ids)}
    check_settings(output_dir / _RESPONSES, settings, len(ids), max_completion_length, batch_size, seed)
    return ids


def run_study(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    output_dir: Path,
    settings: Mapping[str, Any],
    prompt_column: str = "prompt",
    label_column: str = "solution",
    num_samples: int = 8,
    max_completion_length: int = 384,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> tuple[LabelledPool, dict[str, ScoreReport]]:
    """
    Measure every score on a labelled pool. All its labels are read: this is for research, not for training.

    The greedy response of each prompt is scored; samples give pass rates, majority votes and the agreement. What was
    generated and traced is kept in `output_dir`, so that the study can be interrupted and goes on when called again.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            The pool.
        output_dir (`Path`):
            Folder for responses, `traces.parquet`, `scores.parquet` and `study.json`.
        settings (`Mapping[str, Any]`):
            What identifies the model, kept beside the responses; other settings are refused in the same folder.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompts.
        label_column (`str`, *optional*, defaults to `"solution"`):
            Column that holds the labels.
        num_samples (`int`, *optional*, defaults to `8`):
            Sampled responses a prompt; 0 leaves out what needs them.
        max_completion_length (`int`, *optional*, defaults to `384`):
            Longest response in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of responses generated at a time.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples and of the bootstrap.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        `tuple[LabelledPool, dict[str, ScoreReport]]`: the pool, and what each score is worth on it by name.

    Raises:
        ValueError: for a column that is not there, or a folder that belongs to another study.
    """
    ids = check_study(
        dataset, output_dir, settings, prompt_column, label_column, max_completion_length, batch_size, seed
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    responses = collect_responses(
        model,
        tokenizer,
        tokenize_prompts(tokenizer, dataset[prompt_column]),
        output_dir / _RESPONSES,
        dict(settings) | {"pool_id": pool_fingerprint(ids)},
        num_samples,
        max_completion_length,
        batch_size,
        seed,
        progress,
    )
    path = output_dir / "traces.parquet"
    if not path.is_file():
        greedy = [group[GREEDY] for group in responses]
        signals = OPTIONAL_SIGNALS - {"agreement"}
        traces, _ = trace_rollouts(model, greedy, tokenizer.pad_token_id, signals=signals, progress=progress)
        save_traces(traces, path)
    labels = [str(label) for label in dataset[label_column]]
    pool = verify(tokenizer, responses, labels, load_traces(path), progress)
    reports = measure(pool, seed)
    write_study(output_dir, ids, pool, reports)
    return pool, reports


def verify(
    tokenizer: PreTrainedTokenizerBase,
    responses: list[list[Rollout]],
    labels: list[str],
    traces: list[ResponseTrace],
    progress: bool = True,
) -> LabelledPool:
    """
    Compare responses with their labels.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): to decode responses.
        responses (`list[list[Rollout]]`): per prompt, the greedy response and then the samples.
        labels (`list[str]`): one per prompt.
        traces (`list[ResponseTrace]`): of the greedy responses.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        [`LabelledPool`]
    """
    is_wrong, pass_rate, vote_is_right, agreement = [], [], [], []
    with progress_bar("Verifying", len(labels), progress) as advance:
        for group, label in zip(responses, labels, strict=True):
            texts = tokenizer.batch_decode([r.completion_ids for r in group], skip_special_tokens=True)
            right = [is_correct(text, label) for text in texts]
            is_wrong.append(not right[GREEDY])
            if len(group) > 1:
                vote = majority_vote(texts[1:])
                pass_rate.append(float(np.mean(right[1:])))
                vote_is_right.append(bool(vote.members) and right[1:][vote.members[0]])
                agreement.append(vote.agreement)
            advance(1)
    has_samples = len(pass_rate) > 0
    if has_samples:
        traces = [replace(trace, agreement=value) for trace, value in zip(traces, agreement, strict=True)]
    return LabelledPool(
        traces=traces,
        is_wrong=np.array(is_wrong),
        pass_rate=np.array(pass_rate) if has_samples else np.full(len(labels), np.nan),
        vote_is_right=np.array(vote_is_right) if has_samples else None,
        num_tokens=np.array([len(group[GREEDY].completion_ids) for group in responses]),
        num_sampled_tokens=np.array([sum(len(r.completion_ids) for r in group[1:]) for group in responses]),
    )


def measure(pool: LabelledPool, seed: int = 0) -> dict[str, ScoreReport]:
    """
    Score a verified pool with every estimator that its traces suffice for.

    Args:
        pool ([`LabelledPool`]): the pool.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.

    Returns:
        `dict[str, ScoreReport]`: by name, the best AUROC first.
    """
    has_samples = pool.vote_is_right is not None
    names = [name for name, kind in ESTIMATORS.items() if has_samples or "agreement" not in kind.needs]
    lengths = pool.num_tokens.astype(float)
    reports = {}
    for name in names:
        scores, probes = score_pool(ESTIMATORS[name](), pool)
        known = np.full(len(scores), np.nan)
        known[probes] = ~pool.is_wrong[probes]
        ranking = rank_pool(scores)
        calibration = calibrate(ranking, known)
        stretches = np.array_split(np.arange(len(scores)), min(10, len(scores)))
        right = (~pool.is_wrong)[ranking]
        error = sum(len(s) * abs(calibration.curve[s].mean() - right[s].mean()) for s in stretches) / len(scores)
        sampled = bool("agreement" in ESTIMATORS[name].needs)
        reports[name] = ScoreReport(
            scores=scores,
            auroc=bootstrap(auroc, scores, pool.is_wrong, seed=seed),
            auroc_less_length=bootstrap(_auroc_less_length, scores, lengths, pool.is_wrong, seed=seed),
            auroc_less_baseline=bootstrap(_gain, scores, lengths, pool.is_wrong, seed=seed),
            spearman=bootstrap(spearman, scores, pool.pass_rate, seed=seed),
            tokens_per_prompt=float((pool.num_sampled_tokens if sampled else pool.num_tokens).mean()),
            calibration=calibration,
            calibration_error=float(error),
            purchases=[purchase(scores, pool.is_wrong, pool.vote_is_right, share) for share in SHARES],
        )
    return dict(sorted(reports.items(), key=lambda item: -np.nan_to_num(item[1].auroc.value)))


def score_pool(estimator: Any, pool: LabelledPool) -> tuple[np.ndarray, np.ndarray]:
    """
    Score a pool as the callback does: fit, choose the probe set for a budget of 29.3%, let the estimator learn from it
    if it can, cross-fitted. Empty responses score as high as the highest.

    Args:
        estimator ([`Estimator`]): the score.
        pool ([`LabelledPool`]): the pool.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores of shape `(num_prompts,)`, and the probes.
    """
    shown = [len(trace) > 1 for trace in pool.traces]
    fitted = estimator.fit(pool.traces)

    def filled(scores: np.ndarray) -> np.ndarray:
        return np.where(shown, scores, scores[shown].max())

    scores = filled(fitted(pool.traces))
    budget = resolve_budget(SHARES[1], len(scores))
    probes = choose_probes(scores, TriageConfig().resolve_probe_size(budget, len(scores)))
    if isinstance(fitted, CalibratedEstimator):
        learnt = [probe for probe in probes if shown[probe]]
        fitted = fitted.calibrate([pool.traces[i] for i in learnt], ~pool.is_wrong[learnt])
        scores = fitted(pool.traces)
        scores[learnt] = [fitted.score_probe(place, pool.traces[i]) for place, i in enumerate(learnt)]
        scores = filled(scores)
    return scores, probes


def write_study(output_dir: Path, ids: list[str], pool: LabelledPool, reports: dict[str, ScoreReport]) -> None:
    """
    Write the table as JSON and what it was made from, one row a prompt, as Parquet.

    Args:
        output_dir (`Path`): folder.
        ids (`list[str]`): id of each prompt.
        pool ([`LabelledPool`]): the pool.
        reports (`dict[str, ScoreReport]`): what [`measure`] returned.
    """
    columns: dict[str, Any] = {
        "prompt_id": ids,
        "is_wrong": pool.is_wrong,
        "pass_rate": pool.pass_rate,
        "num_tokens": pool.num_tokens,
        "num_sampled_tokens": pool.num_sampled_tokens,
    }
    if pool.vote_is_right is not None:
        columns["vote_is_right"] = pool.vote_is_right
    columns |= {name: report.scores.astype(np.float32) for name, report in reports.items()}
    table = pa.table(columns)
    replace_atomically(output_dir / "scores.parquet", partial(pq.write_table, table, compression="zstd"))
    summary = {
        "num_prompts": len(ids),
        "wrong": float(pool.is_wrong.mean()),
        "vote_accuracy": None if pool.vote_is_right is None else float(pool.vote_is_right.mean()),
        "scores": {
            name: {
                "auroc": asdict(report.auroc),
                "auroc_less_length": asdict(report.auroc_less_length),
                "auroc_minus_length": asdict(report.auroc_less_baseline),
                "spearman": asdict(report.spearman),
                "tokens_per_prompt": report.tokens_per_prompt,
                "calibration_error": report.calibration_error,
                "is_flat": report.calibration.is_flat,
                "purchases": [asdict(bought) for bought in report.purchases],
            }
            for name, report in reports.items()
        },
    }
    text = json.dumps(_without_nan(summary), indent=2) + "\n"
    replace_atomically(output_dir / "study.json", lambda path: path.write_text(text))


def _auroc_less_length(scores: np.ndarray, lengths: np.ndarray, is_wrong: np.ndarray) -> float:
    return auroc(without_length(scores, lengths), is_wrong)


def _gain(scores: np.ndarray, lengths: np.ndarray, is_wrong: np.ndarray) -> float:
    return auroc(scores, is_wrong) - auroc(lengths, is_wrong)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
