"""One response to each prompt from the trainer's own generation engine, in every supported version of TRL."""

from typing import Any

from .private_names import has_parameter


def generate_once(trainer: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
    """
    Sample one response to each prompt.

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            A trainer that passed `check_trainer`, with its model in evaluation mode.
        prompt_ids (`list[list[int]]`):
            Tokens of the prompts.

    Returns:
        `list[list[int]]`: tokens of as many responses.
    """
    if has_parameter(trainer, "_generate_single_turn", "num_generations"):
        return _ids(trainer._generate_single_turn(prompt_ids, None, {}, 1))
    # RLOOTrainer, and GRPOTrainer up to 1.14.0, read the number from the trainer, and vLLM is given the first of every
    # so many prompts.
    number = trainer.num_generations_eval
    trainer.num_generations_eval = 1
    try:
        return _ids(trainer._generate_single_turn(prompt_ids, None, {}))
    finally:
        trainer.num_generations_eval = number


def _ids(generated: Any) -> list[list[int]]:
    # GRPOTrainer returns log-probabilities as well.
    return [list(ids) for ids in (generated[0] if isinstance(generated, tuple) else generated)]
