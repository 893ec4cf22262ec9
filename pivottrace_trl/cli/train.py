"""`pivottrace train`: what `trl grpo` does, and the two lines."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from datasets import Dataset, DatasetDict, load_dataset
from packaging.version import Version
from transformers.utils import logging
from trl import (
    DatasetMixtureConfig,
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)
from trl.scripts.grpo import GRPOScriptArguments

from ..training.versions import installed
from .config import PivotTraceConfig


logger = logging.get_logger(__name__)

_EXAMPLES = """examples:
  pivottrace train --config grpo.yaml --annotation_budget 30%
  pivottrace train --config grpo.yaml --annotator queue --wait_for_annotations 0.9
  pivottrace train --config grpo.yaml --num_processes 2 --resume_from_checkpoint run/checkpoint-100
  accelerate launch --config_file ddp.yaml -m pivottrace_trl train --config grpo.yaml"""

# The names that `trl grpo` knows, with its settings.
_REWARDS: dict[str, Callable] = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "think_format_reward": think_format_reward,
    "get_soft_overlong_punishment": get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and the examples line by line."""


def train(args: argparse.Namespace) -> None:
    """
    Train as `trl grpo` does, with the `options` that stand behind the command. Started by hand it starts itself
    through accelerate, as `trl grpo` does; in the processes that accelerate or torchrun started, it trains.

    Raises:
        ValueError: for options that cannot be used.
    """
    # A launcher's marks: the parser's configurations set others, such as ACCELERATE_MIXED_PRECISION, themselves.
    is_launched = not {"ACCELERATE_USE_CPU", "LOCAL_RANK"}.isdisjoint(os.environ)
    parser = TrlParser(
        cast(Any, (GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig, PivotTraceConfig)),
        prog="pivottrace train",
        usage="pivottrace train [--config FILE] [--option VALUE ...]",
        description="Train as `trl grpo` does, on labels that PivotTrace picks. Options are those of `trl grpo`, of\n"
        "PivotTrace (at the end), and of `accelerate launch`. A YAML file holds them under the same names.",
        epilog=_EXAMPLES,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    # The parser knows the flag only as a word of its own.
    argv = [part for arg in args.options for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if argv[-1:] == ["--config"]:
        raise ValueError("`--config` is the last word, and names no file: `--config grpo.yaml`.")
    try:
        *configs, in_file, in_flags = parser.parse_args_and_config(
            argv, return_remaining_strings=True, separate_remaining_strings=True
        )
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    script_args, training_args, model_args, dataset_args, config = configs
    launch = _read_launch(parser, argv, in_file, in_flags)
    _check_is_named(script_args, model_args, dataset_args)
    if is_launched and in_flags:
        raise ValueError(
            f"{in_flags} is for `accelerate launch`, which runs already. Put it before `-m pivottrace_trl`."
        )
    if not is_launched:
        launch_command(launch)
        return
    trainer = _make_trainer(script_args, training_args, model_args, dataset_args)
    trainer.add_callback(config.make_callback(trainer))
    try:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except Exception:
        args.debug = True  # what fails in training shows where, as in any script
        raise
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"The model is in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"It is on the hub: https://huggingface.co/{trainer.hub_model_id}")
    if Version(installed("transformers")) >= Version("5.18.0"):
        trainer.end()  # trackers and process group


def _read_launch(parser: TrlParser, argv: list[str], in_file: list[str], in_flags: list[str]) -> argparse.Namespace:
    """How accelerate is to start this command, from what only accelerate knows; `ValueError` if it does not either."""
    own, rest = [], list(in_flags)  # `in_flags` stand in `argv` in the same order
    for arg in argv:
        if rest[:1] == [arg]:
            rest.pop(0)
        else:
            own.append(arg)
    launch = resolve_accelerate_config_argument(in_file + in_flags)
    # Quiet: the failure of the process that it starts is told there.
    command = ["--quiet", *launch, "-m", "pivottrace_trl", "train", *own]
    args, unknown = launch_command_parser().parse_known_args(command)
    if unknown:
        name = unknown[0].partition("=")[0].lstrip("-")
        known = [part.name for kind in parser.dataclass_types for part in fields(kind)]
        near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
        raise ValueError(
            f"`{name}` is no option of `trl grpo`, of PivotTrace or of `accelerate launch`."
            + (f" Did you mean `{near[0]}`?" if near else "")
            + " `pivottrace train --help` lists them."
        )
    if args.training_script != "pivottrace_trl":
        raise ValueError(
            f"{args.training_script!r} belongs to no option. A file of settings is named by `--config`; options of "
            "`accelerate launch` that take no value, such as `--multi_gpu`, stand in flags and not in the file."
        )
    return args


def _check_is_named(
    script_args: GRPOScriptArguments, model_args: ModelConfig, dataset_args: DatasetMixtureConfig
) -> None:
    """`ValueError` if the model, a reward function or the dataset is missing, or the dataset is a stream."""
    if model_args.model_name_or_path is None:
        raise ValueError(
            "No model is named. Add `model_name_or_path`, a folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    if not script_args.reward_funcs and script_args.reward_model_name_or_path is None:
        raise ValueError(
            f"No reward function is named. Add `reward_funcs`: of {[*_REWARDS]}, or yours as package.module.function."
        )
    if not dataset_args.datasets and script_args.dataset_name is None:
        raise ValueError(
            "No dataset is named. Add `dataset_name`, a folder or a hub id, or `datasets`, such as `datasets: [{path: "
            "json, data_files: pool.jsonl}]`."
        )
    if script_args.dataset_streaming or dataset_args.streaming:
        raise ValueError(
            "`dataset_streaming` and `streaming` leave no pool that could be ranked as a whole. Leave them out, or "
            "rank its beginning by `pivottrace triage --streaming --limit N`."
        )


def _make_trainer(
    script_args: GRPOScriptArguments,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> GRPOTrainer:
    """The trainer that `trl grpo` makes of its configurations."""
    reward_funcs = _find_rewards(script_args)
    dataset = _load_dataset(script_args, dataset_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **cast(dict, training_args.model_init_kwargs or {}),
    }
    evaluates = training_args.eval_strategy != "no"
    return GRPOTrainer(
        model=cast(str, model_args.model_name_or_path),
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=_split(dataset, "dataset_train_split", script_args.dataset_train_split),
        eval_dataset=_split(dataset, "dataset_test_split", script_args.dataset_test_split) if evaluates else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def _find_rewards(script_args: GRPOScriptArguments) -> list[Any]:
    """The reward model, and the reward functions by their names or import paths."""
    found: list[Any] = []
    sys.path.insert(0, os.getcwd())
    if script_args.reward_model_name_or_path:
        found.append(script_args.reward_model_name_or_path)
    names = script_args.reward_funcs or []
    for name in [names] if isinstance(names, str) else names:  # YAML may hold one name instead of a list
        if name in _REWARDS:
            found.append(_REWARDS[name])
            continue
        module, _, attribute = name.rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module or name), attribute))
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"`reward_funcs` names {name!r}, which cannot be imported ({error}). Name one of {[*_REWARDS]}, or a "
                "function of yours as package.module.function, from the folder in which you start."
            ) from error
    return found


def _load_dataset(script_args: GRPOScriptArguments, dataset_args: DatasetMixtureConfig) -> DatasetDict:
    if dataset_args.datasets:
        if script_args.dataset_name:
            logger.warning("`datasets` is used, and `dataset_name` is not: only one of them can be. Take one out.")
        return get_dataset(dataset_args)
    return load_dataset(script_args.dataset_name, name=script_args.dataset_config)


def _split(dataset: DatasetDict, option: str, name: str) -> Dataset:
    if name not in dataset:
        raise ValueError(f"`{option}` is {name!r}, but the dataset has {[*dataset]}. Name one of these.")
    return dataset[name]
