"""Answers, traces and verifies a labelled pool in a folder, and compares all scores on it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..answers import MathFormat, is_correct
from ..answers.vote import vote_on
from ..files import check_writable, reading, write_json, write_parquet
from ..pool import pool_fingerprint, pool_ids
from ..progress import progress_bar
from ..scoring.policy import ModelPolicy
from ..scoring.survey import Responses, Survey, add_agreement
from ..tracing.trace import OPTIONAL_SIGNALS, save_traces
from .measure import LabelledPool, ScoreReport, measure


SURVEY, SETTINGS = "survey", "settings.json"
"""Folder of the responses within that of the study, and the file in it that describes how they were made."""


def check_study(
    dataset: Dataset,
    output_dir: Path,
    settings: Mapping[str, Any],
    prompt_column: str,
    label_column: str,
    max_completion_length: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """
    Check the arguments of [`run_study`] before a model is loaded, and return what identifies the study.

    Raises:
        ValueError: if the pool, a column or the folder cannot be used, or the folder belongs to another study.
    """
    ids = pool_ids(dataset, prompt_column)
    if label_column not in dataset.column_names:
        raise ValueError(
            f"There is no label column {label_column!r}; the pool has {dataset.column_names}. Name one of them as "
            "`label_column`: a study reads all labels."
        )
    check_writable(output_dir)
    settings = {
        **settings,
        "pool_id": pool_fingerprint(ids),
        "num_prompts": len(ids),
        "max_completion_length": max_completion_length,
        "batch_size": batch_size,
        "seed": seed,
    }
    path = output_dir / SURVEY / SETTINGS
    if path.is_file():
        with reading(path, "Use a fresh folder."):
            saved = dict(json.loads(path.read_text()))
        if saved != settings:
            different = {key: (saved.get(key), value) for key, value in settings.items() if saved.get(key) != value}
            raise ValueError(
                f"{output_dir} holds responses of another study: (there, now) is {different}. Use a fresh folder."
            )
    return settings


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
    Measure every score on a labelled pool. All labels are read: this is for research, not for training.

    The greedy response to each prompt is scored. Samples give pass rates, majority votes and the agreement. Responses
    and traces are stored in `output_dir`, so that an interrupted study goes on when it is called again with the same
    `settings`, which identify the model. The second call may ask for more samples.
    """
    settings = check_study(
        dataset, output_dir, settings, prompt_column, label_column, max_completion_length, batch_size, seed
    )
    write_json(output_dir / SURVEY / SETTINGS, settings)
    responses = survey_pool(
        model,
        tokenizer,
        dataset[prompt_column],
        output_dir / SURVEY,
        num_samples,
        max_completion_length,
        batch_size,
        seed,
        progress,
    )
    ids = pool_ids(dataset, prompt_column)
    save_traces(responses[0].traces, output_dir / "traces.parquet", ids)
    pool = verify(responses, [str(label) for label in dataset[label_column]], progress)
    reports = measure(pool, seed)
    write_study(output_dir, ids, pool, reports)
    return pool, reports


def survey_pool(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    folder: Path,
    num_samples: int = 8,
    max_completion_length: int = 384,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> list[Responses]:
    """The greedy responses to a pool with traces, followed by surveys of one sample per prompt at temperature 1."""

    def make_policy(number: int) -> ModelPolicy:
        # All batches of a study draw different random numbers.
        temperature, number_seed = float(number > 0), seed + 1_000_003 * number
        return ModelPolicy(model, tokenizer, max_completion_length, temperature, batch_size, number_seed)

    def survey(number: int, order: list[int], signals: frozenset[str] | None = None) -> Responses:
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        path, policy = folder / f"{number:02d}", make_policy(number)
        return Survey(path, policy, prompts, MathFormat(), signals, batches=batches).run(progress=progress)

    lengths = [len(ids) for ids in make_policy(0).tokenize(prompts)]
    order = sorted(range(len(prompts)), key=lengths.__getitem__, reverse=True)
    greedy = survey(0, order, OPTIONAL_SIGNALS - {"agreement"})
    # Sampled responses tend to be as long as the greedy one, so batches by its length finish together.
    order = sorted(order, key=lambda row: len(greedy.rollouts[row].completion_ids), reverse=True)
    return [greedy] + [survey(number, order) for number in range(1, num_samples + 1)]


def verify(responses: Sequence[Responses], labels: list[str], progress: bool = True) -> LabelledPool:
    """Compare the greedy responses, which come first, and the sampled ones with the labels."""
    greedy, *samples = responses
    is_right, vote_is_right, agreement = [], [], []
    with progress_bar("Verifying", len(labels), progress) as advance:
        for row, label in enumerate(labels):
            right = [is_correct(found.texts[row], label) for found in responses]
            is_right.append(right)
            if samples:
                vote = vote_on([sample.answers[row] for sample in samples], MathFormat())
                vote_is_right.append(bool(vote.members) and right[1:][vote.members[0]])
                agreement.append(vote.agreement)
            advance(1)
    rights = np.array(is_right)
    lengths = np.array([[len(rollout.completion_ids) for rollout in found.rollouts] for found in responses])
    return LabelledPool(
        traces=add_agreement(greedy.traces, agreement) if samples else greedy.traces,
        is_wrong=~rights[:, 0],
        pass_rate=rights[:, 1:].mean(axis=1) if samples else np.full(len(labels), np.nan),
        vote_is_right=np.array(vote_is_right) if samples else None,
        num_tokens=lengths[0],
        num_sampled_tokens=lengths[1:].sum(axis=0),
    )


def write_study(output_dir: Path, ids: list[str], pool: LabelledPool, reports: dict[str, ScoreReport]) -> None:
    """Write the table as JSON, and the data behind it as Parquet with one row per prompt."""
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
    write_parquet(output_dir / "scores.parquet", columns)
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
    write_json(output_dir / "study.json", _rounded(summary))


def _rounded(value: Any) -> Any:
    """Round to six digits; `None` for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
