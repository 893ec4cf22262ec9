"""The private names of TRL's trainers that the package uses, and a check that they exist."""

import inspect
from collections.abc import Callable
from typing import Any


# Methods that we call, or shadow with an instance attribute, with their first parameters in order. Further optional
# parameters are left to TRL; where we shadow a method, they are passed on.
METHODS: dict[str, tuple[str, ...]] = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields"),
    "_get_output_dir": ("trial",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep"),
    "_get_train_sampler": ("dataset",),
    "_log_completion_extra": ("column", "values"),
    "_log_metric": ("name", "value"),
    "_save_checkpoint": ("model", "trial"),
    "_tokenize_prompts": ("prompts",),
    "create_model_card": ("model_name", "dataset_name", "tags"),
    "compute_loss": ("model", "inputs"),
    "train": ("resume_from_checkpoint",),
}
# Parameters that exist only in some of the supported versions, and that we pass if they do.
SOMETIMES = {"_generate_single_turn": "num_generations"}
# Attributes that we read.
ATTRIBUTES = ("_pending_extra_logs", "_tokenizer")


def has_parameter(trainer: Any, name: str, parameter: str) -> bool:
    """Whether a method of the trainer's class has a parameter."""
    return parameter in inspect.signature(getattr(type(trainer), name)).parameters


def find_differences(trainer: Any) -> list[str]:
    """
    Describe which private names a trainer lacks, and which methods have other parameters. Empty if it can be attached
    to.
    """
    found = [f"there is no `{name}`" for name in ATTRIBUTES if not hasattr(trainer, name)]
    for name, expected in METHODS.items():
        method = getattr(type(trainer), name, None)
        if not callable(method):
            found.append(f"there is no method `{name}`")
        elif not _takes(method, expected, SOMETIMES.get(name)):
            parameters = ", ".join(str(parameter) for parameter in _parameters(method))
            found.append(f"`{name}({', '.join(expected)})` is now `{method.__qualname__}({parameters})`")
    return found


def _parameters(method: Callable) -> list[inspect.Parameter]:
    """Parameters of a method of a class, without `self`, annotations and multi-line defaults."""
    parameters = inspect.signature(method).parameters.values()
    return [parameter.replace(annotation=parameter.empty) for parameter in parameters if parameter.name != "self"]


def _takes(method: Callable, expected: tuple[str, ...], sometimes: str | None) -> bool:
    """Whether a method takes the expected parameters by position, and requires no others."""
    parameters = _parameters(method)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = tuple(p.name for p in named[: len(expected)])
    # `*args` takes the rest, as in TRL 1.14's method for log-probabilities.
    takes_rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    others = [p for p in parameters if p.name not in expected and p.name != sometimes]
    needed = [p for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return not needed and (names == expected or (takes_rest and names == expected[: len(named)]))
