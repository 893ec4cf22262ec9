"""One greedy and several sampled responses a prompt, saved as they are made, so that a study can be interrupted."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..files import reading, replace_atomically
from ..progress import progress_bar
from ..tracing.rollouts import Rollout, transformers_generator


_SETTINGS = "settings.json"
GREEDY = 0
"""Number of the greedy response among those of a prompt; the sampled ones are counted from 1."""


def collect_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    folder: Path,
    settings: dict[str, Any],
    num_samples: int = 8,
    max_completion_length: int = 384,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Rollout]]:
    """
    Generate one greedy response and `num_samples` sampled ones (temperature 1, nothing cut off) for every prompt.

    Every batch is written to `folder` when it is done and drawn with a seed of its own: a second call goes on where
    the first one stopped and gives what an undisturbed call gives. A later call may ask for more samples.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_ids (`Sequence[list[int]]`):
            Token ids of every prompt.
        folder (`Path`):
            Where the batches are kept.
        settings (`dict[str, Any]`):
            What the responses depend on besides the arguments (model, pool), as plain JSON values.
        num_samples (`int`, *optional*, defaults to `8`):
            Number of sampled responses a prompt.
        max_completion_length (`int`, *optional*, defaults to `384`):
            Longest response in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of responses generated at a time.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[list[Rollout]]`: per prompt, the greedy response and then the samples.

    Raises:
        ValueError: if `folder` holds responses that were made with other settings.
    """
    settings = check_settings(folder, settings, len(prompt_ids), max_completion_length, batch_size, seed)
    if not (folder / _SETTINGS).is_file():
        text = json.dumps(settings, indent=2) + "\n"
        replace_atomically(folder / _SETTINGS, lambda temporary: temporary.write_text(text))
    end_ids = model.generation_config.eos_token_id or tokenizer.eos_token_id

    def generator(**options: Any):
        config = GenerationConfig(
            max_new_tokens=max_completion_length, pad_token_id=tokenizer.pad_token_id, eos_token_id=end_ids, **options
        )
        return transformers_generator(model, tokenizer, config)

    greedy, sampled = generator(do_sample=False), generator(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    responses: list[list[Rollout]] = [[] for _ in prompt_ids]
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]), reverse=True)
    with progress_bar("Generating responses", len(order) * (1 + num_samples), progress) as advance:
        for number in range(1 + num_samples):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                path = folder / f"responses-{number:02d}-{start:06d}.parquet"
                if not path.is_file():
                    torch.manual_seed(seed + 1_000_003 * number + start)
                    generate = greedy if number == GREEDY else sampled
                    completions = generate([prompt_ids[row] for row in rows])
                    table = pa.table({"row": rows, "completion_ids": pa.array(completions, pa.list_(pa.int32()))})
                    replace_atomically(path, partial(pq.write_table, table))
                for row, completion in zip(*pq.read_table(path).to_pydict().values(), strict=True):
                    responses[row].append(Rollout(list(prompt_ids[row]), completion))
                advance(len(rows))
            if number == GREEDY:
                # Sampled responses tend to be as long as the greedy one: batches of similar length finish together.
                order = sorted(order, key=lambda row: len(responses[row][GREEDY].completion_ids), reverse=True)
    return responses


def check_settings(
    folder: Path, settings: dict[str, Any], num_prompts: int, max_completion_length: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """
    See that a folder holds no responses of another study.

    Args:
        folder (`Path`): as in [`collect_responses`], and so are the others.
        settings (`dict[str, Any]`): what the responses depend on besides the other arguments.
        num_prompts (`int`): number of prompts.
        max_completion_length (`int`): longest response in tokens.
        batch_size (`int`): number of responses generated at a time.
        seed (`int`): seed of the samples.

    Returns:
        `dict[str, Any]`: all of these as one.

    Raises:
        ValueError: if it does.
    """
    settings = settings | {
        "num_prompts": num_prompts,
        "max_completion_length": max_completion_length,
        "batch_size": batch_size,
        "seed": seed,
    }
    path = folder / _SETTINGS
    if path.is_file():
        with reading(path, "Use a fresh folder."):
            saved = dict(json.loads(path.read_text()))
        if saved != settings:
            different = {key: (saved.get(key), value) for key, value in settings.items() if saved.get(key) != value}
            raise ValueError(
                f"{folder} holds responses of another study: (there, now) is {different}. Use a fresh folder."
            )
    return settings
