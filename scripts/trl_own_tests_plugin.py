"""
The pytest plugin of `trl_own_tests.py`: stand-ins for the hub, the callback on every trainer, and a record of it all.

Both runs load it. Without `ATTACH` in the environment it attaches nothing, and is the same in all else.
"""

import ast
import functools
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from trl import GRPOTrainer
from trl_stand_ins import DATA

from pivottrace_trl import PivotDensityCallback, TextFormat, TriageConfig
from pivottrace_trl.training.checks import check_trainer


REFUSALS = (NotImplementedError, RuntimeError, TypeError, ValueError)
LABEL = "peer_label"
# TRL's rewards are all of the kind that a random model masters, and its tests want every group to train: nothing is
# discarded, and two of three votes are enough.
CONFIG = TriageConfig(probe_size=4, discard_ratio=0.0, min_agreement=0.5)
# What the running test did: number of trainers with a callback, and why the others have none.
_current: dict[str, Any] = {}
_records: dict[str, dict[str, Any]] = {}
_initialise = GRPOTrainer.__init__
_load_dataset = datasets.load_dataset


def _verify(completions, peer_label=None, **kwargs) -> list[float]:
    """Right are texts whose length has the parity that the label names."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    wanted = peer_label or ["even"] * len(texts)
    return [float(_parity(text) == label) for text, label in zip(texts, wanted, strict=True)]


def _parity(text: str) -> str:
    return "even" if len(text) % 2 == 0 else "odd"


class _Parity(TextFormat):
    """Whether the number of characters is even."""

    name = "scripts.trl_own_tests_plugin:_Parity"

    def extract(self, completion: str) -> str:
        return _parity(completion)


def _add_verifier(trainer: Any) -> None:
    """
    Where nothing can verify (reward models only) or it is unclear what does, put a verifier of weight 0 beside the
    reward functions: it changes no advantage.
    """
    if sum(not isinstance(reward, nn.Module) for reward in trainer.reward_funcs) != 1:
        trainer.reward_funcs = [*trainer.reward_funcs, _verify]
        trainer.reward_func_names = [*trainer.reward_func_names, "verify"]
        trainer.reward_processing_classes = [*trainer.reward_processing_classes, None]
        trainer.reward_weights = torch.cat([trainer.reward_weights, trainer.reward_weights.new_zeros(1)])


@functools.wraps(_initialise)
def _initialise_and_attach(self: Any, *args: Any, **kwargs: Any) -> None:
    _initialise(self, *args, **kwargs)
    try:
        check_trainer(self)
        _add_verifier(self)
        if "ATTACH" in os.environ:
            callback = PivotDensityCallback(
                self,
                annotation_budget=0.5,
                label_column=LABEL,
                # TRL's tests want every column in their reward functions.
                free_columns=[name for name in self.train_dataset.column_names or () if name != LABEL],
                annotator=lambda rows: ["even" for _ in rows],
                answer_format=_Parity(),
                config=CONFIG,
            )
            self.add_callback(callback)
    except REFUSALS as error:
        _current["refused"].append(f"{type(error).__name__}: {error}")
    else:
        _current["attached"] += "ATTACH" in os.environ


@functools.wraps(_load_dataset)
def _load_stand_in(path: str, name: str | None = None, **options: Any) -> Any:
    folder = Path(os.environ["STAND_INS"]) / "data" / str(name)
    if path != DATA or not folder.is_dir():
        pytest.skip(f"needs the data set {path} from the hub")
    files = {file.stem: str(file) for file in folder.glob("*.parquet")}
    return _load_dataset("parquet", data_files=files, **options)


def pytest_configure(config: pytest.Config) -> None:
    """Put the stand-ins and the trainer's new constructor in place, before the tests are imported."""
    for marker in ("slow", "low_priority", "invariant"):
        config.addinivalue_line("markers", f"{marker}: of TRL")
    GRPOTrainer.__init__ = _initialise_and_attach  # type: ignore[method-assign]
    datasets.load_dataset = _load_stand_in
    # A checkout of another version may ask whether a package is there that the installed TRL never asks for.
    import_utils = import_module("trl.import_utils")
    tree = ast.parse(Path("tests/testing_utils.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "trl.import_utils":
            for name in {alias.name for alias in node.names} - set(vars(import_utils)):
                setattr(import_utils, name, lambda *args, **kwargs: False)


def pytest_runtest_logstart(nodeid: str, location: tuple) -> None:
    """Begin the record of a test."""
    _current.clear()
    _current.update(attached=0, refused=[])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Note the outcome; a test that fails for want of a file on the hub counts as skipped."""
    report = yield
    reason = "" if call.excinfo is None else call.excinfo.exconly().splitlines()[0]
    if report.failed and call.excinfo is not None and _needs_hub(call.excinfo.value):
        report.outcome = "skipped"
        reason = f"needs a file from the hub: {reason}"
        report.longrepr = (str(item.path), 0, reason)
    elif report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    if report.when == "call" or not report.passed:
        expected = hasattr(report, "wasxfail")
        outcome = {"passed": "xpassed", "skipped": "xfailed"}[report.outcome] if expected else report.outcome
        _records[item.nodeid] = {"outcome": outcome, "reason": report.wasxfail if expected else reason, **_current}
    return report


def _needs_hub(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and ("offline" in str(error).lower() or "couldn't connect" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record, also of a run that was interrupted."""
    Path(os.environ["RECORD"]).write_text(json.dumps(_records, indent=1))
