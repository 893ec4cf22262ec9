"""`pivottrace doctor`: whether this installation is one that the callback can work with."""

import argparse
import importlib.util
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from .arguments import add_command


def add_doctor(commands) -> None:
    add_command(
        commands,
        "doctor",
        _doctor,
        "check in seconds that the callback fits the installed TRL, on this machine",
        examples="pivottrace doctor",
    )


def _doctor(args: argparse.Namespace) -> None:
    import transformers

    from ..training.assumptions import find_broken
    from ..training.private_names import find_differences
    from ..training.versions import is_newer_than_tested

    for name, value in _describe().items():
        print(f"{name:<14}{value}")
    # A dozen trainers are made and run: what they say of themselves is not what is asked for.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        make = _Maker(Path(folder))
        differences = [f"{name}: {text}" for name, trainer in make.kinds() for text in find_differences(trainer)]
        _tell("every private name of TRL that we use is there, with its parameters", "; ".join(differences))
        broken = {} if differences else find_broken(make)
        for assumption, text in broken.items():
            _tell(assumption, text)
    if differences or any(broken.values()):
        print("\nVerdict: the callback does not fit this TRL. Install a version that was tested, see the lines above.")
        sys.exit(1)
    untested = " It is newer than what we tested with, and does what we need." if is_newer_than_tested() else ""
    print(f"\nVerdict: the callback fits this TRL.{untested}")


def _tell(what: str, problem: str) -> None:
    print(f"  {'FAILS' if problem else 'holds'}  {what}{': ' if problem else ''}{problem}")


def _describe() -> dict[str, str]:
    """Versions, device, precision, attention and generation engine."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    from ..report.record import describe_environment
    from ..training.versions import TESTED, TRL_VERSIONS, installed

    environment = describe_environment()
    versions = [f"{name} {version}" for name, version in environment["versions"].items()]
    for name in ("accelerate", "bitsandbytes", "vllm"):
        try:
            versions.append(f"{name} {installed(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    has_gpu = torch.cuda.is_available()
    attention = "sdpa, eager" + (", flash_attention_2" if is_flash_attn_2_available() else "")
    precision = "bfloat16" if not has_gpu or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    memory = f", {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GB" if has_gpu else ""
    return {
        "python": f"{environment['python']} on {environment['platform']}",
        "libraries": ", ".join(versions),
        "tested with": f"trl {TRL_VERSIONS}, up to {TESTED}",
        "device": environment["device"] + memory,
        "precision": precision,
        "attention": attention,
        "generation": "vLLM, or the model's own" if importlib.util.find_spec("vllm") else "the model's own",
    }


class _Maker:
    """Makes trainers for the checks: the embedded model on additions, all files in a folder of its own."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        from ..demo import MODEL_PATH

        self._folder, self._number = folder, 0
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)

    def __call__(self, reward: Any = None, columns: dict[str, list] | None = None, **settings: Any) -> Any:
        from trl import GRPOConfig, GRPOTrainer

        return self._make(GRPOTrainer, GRPOConfig, reward, columns, settings)

    def kinds(self) -> list[tuple[str, Any]]:
        """A trainer of each kind that the callback attaches to, with its name."""
        from trl import RLOOConfig, RLOOTrainer

        return [("GRPOTrainer", self()), ("RLOOTrainer", self._make(RLOOTrainer, RLOOConfig, None, None, {}))]

    def _make(self, kind: Any, config: Any, reward: Any, columns: dict[str, list] | None, settings: dict) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, PrinterCallback

        from ..demo import MODEL_PATH, make_pool
        from ..training.assumptions import SETTINGS, any_reward

        self._number += 1
        pool = make_pool(32, seed=0)
        for name, values in (columns or {}).items():
            pool = pool.add_column(name, values)
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32),
            reward_funcs=reward or any_reward,
            args=config(
                output_dir=str(self._folder / str(self._number)),
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                **{**SETTINGS, **settings},
            ),
            train_dataset=pool,
            processing_class=self.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer
