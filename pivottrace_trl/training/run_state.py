"""
What a run knows, kept by its owners: one state for the checkpoint and for the other processes. Beside a checkpoint,
plain values are JSON and arrays columns of a Parquet table, one row a prompt. No pickle.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..answers import AnswerFormat
from ..files import reading, replace_atomically, write_parquet
from ..labels.ledger import AnnotationLedger
from ..labels.pool_file import POOL_FILE, write_pool
from ..labels.state import LedgerCopy, LedgerState, LedgerView
from ..labels.vault import LabelVault
from ..pool import pool_fingerprint
from ..processes import Processes
from ..routing.router import PoolRouter
from ..scoring.scorer import PoolScorer


logger = logging.get_logger(__name__)

_NOT_SAVED = (
    "What {name} learnt of the pool cannot be saved, as its fields are no plain values: keep what `fit` finds in "
    "Python's own numbers, strings, lists and dictionaries."
)
_DAMAGED = "It is damaged: resume from another checkpoint."
_FORMAT = 5
_JSON, _PARQUET = "pivottrace.json", "pivottrace.parquet"


def open_ledger(
    folder: Path,
    processes: Processes,
    vault: LabelVault,
    has_annotator: bool,
    budget: int,
    prompt_ids: Sequence[str],
    label_column: str,
    answer_format: AnswerFormat,
    texts: Callable[[Sequence[int]], Iterable[str]],
) -> LedgerView:
    """
    Open the ledger of a run on rank 0, with the pool beside it; the other processes get a view of it.

    Args:
        folder (`Path`): private folder of the run.
        processes ([`Processes`]): the processes of the run.
        vault ([`LabelVault`]): its labels are the user's own where an annotator is asked for the others; else it may
            have corrections of labels that were bought from it.
        has_annotator (`bool`): whether there is an annotator.
        budget, prompt_ids, label_column, answer_format: see [`AnnotationLedger`].
        texts (`Callable[[Sequence[int]], Iterable[str]]`): what some rows of the pool ask, for people.

    Raises:
        ValueError: if a ledger lies where the trainer would upload it, or another run's cannot be gone on with.
    """
    opened: list[AnnotationLedger] = []

    def open_file() -> LedgerState:
        path = folder / "ledger.sqlite"
        # The folder of an earlier release, and that of a triage.
        for former in (folder.with_name("pivottrace") / path.name, folder.with_name(path.name)):
            if former.is_file() and not path.is_file():
                raise ValueError(
                    f"{former} holds labels that are paid for, where the trainer would upload them to the hub. "
                    f"Move the files of that run or triage to {folder}."
                )
        ledger = AnnotationLedger(path, budget, prompt_ids, label_column, answer_format)
        if not has_annotator:
            ledger.take_corrections(vault)
        elif vault.num_labels:
            ledger.take_own(vault)
        write_pool(folder / POOL_FILE, prompt_ids, texts)
        opened.append(ledger)
        return ledger.snapshot()

    state = processes.on_main(open_file)
    return opened[0] if opened else LedgerCopy(state)


class Stateful(Protocol):
    """Keeps state of its own: plain values by name, and the router also arrays with one entry a prompt."""

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on from here; no texts, since a checkpoint may go to the hub."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Position:
    """
    Where a run is, as far as no owner of state knows it.

    Attributes:
        seed (`int`): its seed.
        epoch (`int`): epoch that the routes are for.
        num_prompts (`int`): prompts an epoch.
        num_scoring_tokens (`int`): tokens spent on scoring.
        survey (`str`): identifies the first responses to the pool, by which labels that are bought later are
            verified.
    """

    seed: int
    epoch: int
    num_prompts: int
    num_scoring_tokens: int
    survey: str


@dataclass(frozen=True)
class RunState:
    """
    Everything of a run that has state.

    Attributes:
        router ([`PoolRouter`]): scores, evidence, routes.
        scorer ([`PoolScorer`]): heads, thresholds, estimator.
        others (`Mapping[str, Stateful]`): whatever else has state, by name.
    """

    router: PoolRouter
    scorer: PoolScorer
    others: Mapping[str, Stateful]

    @property
    def _owners(self) -> dict[str, Stateful]:
        return {"scorer": self.scorer, "router": self.router, **self.others}

    def share(self, processes: Processes) -> None:
        """Give what rank 0 decided and learnt to the others, which get a view of its ledger."""
        if processes.size == 1:
            return
        states = {name: owner.state_dict() for name, owner in self._owners.items()}
        states, ledger = processes.broadcast((states, self.router.ledger.snapshot()))
        if not processes.is_main:
            self.router.ledger = LedgerCopy(ledger)
            for name, owner in self._owners.items():
                owner.load_state_dict(states[name])

    def save(self, checkpoint: Path, position: Position) -> None:
        """Save what the next routing and the sampler need in the folder of a checkpoint."""
        states: dict[str, Any] = {name: owner.state_dict() for name, owner in self._owners.items()}
        columns = {name: value for name, value in states["router"].items() if isinstance(value, np.ndarray)}
        states["router"] = {name: value for name, value in states["router"].items() if name not in columns}
        try:
            json.dumps(states["scorer"])
        except TypeError:
            logger.warning_once(self._not_saved + " This run cannot be resumed.")
            states["scorer"] = None
        # A checkpoint that is saved again must not look complete by what is left of the last time.
        (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
        write_parquet(checkpoint / _PARQUET, {"prompt_id": self.router.prompt_ids, **columns})
        content = {"pool_id": pool_fingerprint(self.router.prompt_ids), "position": asdict(position), **states}
        digest = _digest(content, checkpoint / _PARQUET)
        text = json.dumps({"format": _FORMAT, "digest": digest, "content": content})
        replace_atomically(checkpoint / _JSON, lambda path: path.write_text(text))

    def load(self, checkpoint: Path, seed: int) -> Position:
        """
        Put a saved state back into fresh owners.

        Raises:
            FileNotFoundError: if the checkpoint holds no routing state.
            ValueError: if it is damaged, belongs to another pool, seed or estimator, or an estimator whose fields are
                no plain values.
        """
        if not (checkpoint / _JSON).is_file():
            raise FileNotFoundError(
                f"{checkpoint} holds no {_JSON}: it was saved without a PivotDensityCallback. Resume without the "
                "callback, or start a new run from its weights."
            )
        with reading(checkpoint / _JSON, _DAMAGED):
            saved = json.loads((checkpoint / _JSON).read_text())
            saved_format = saved.get("format")
        if saved_format != _FORMAT:
            raise ValueError(
                f"{checkpoint} has routing state of format {saved_format}, but this release reads {_FORMAT}. "
                "Resume with the release of pivottrace-trl that saved it."
            )
        with reading(checkpoint, _DAMAGED):
            content = saved["content"]
            if saved["digest"] != _digest(content, checkpoint / _PARQUET):
                raise ValueError("its digest is another")
            table = pq.read_table(checkpoint / _PARQUET)
        # From here on nothing is damaged: what fails is a mistake of ours, and says so itself.
        position = Position(**content["position"])
        self._check(checkpoint, content, table["prompt_id"].to_pylist(), position.seed, seed)
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "prompt_id"}
        content["router"] |= columns
        for name, owner in self._owners.items():
            owner.load_state_dict(content[name])
        return position

    def _check(
        self, checkpoint: Path, content: dict[str, Any], prompt_ids: list[str], saved_seed: int, seed: int
    ) -> None:
        """Refuse the state of another run."""
        pool_id = pool_fingerprint(self.router.prompt_ids)
        if content["pool_id"] != pool_id:
            raise ValueError(
                f"{checkpoint} was saved for pool {content['pool_id']}, but this one is {pool_id}. Resume with the "
                "dataset of that run."
            )
        if saved_seed != seed:
            raise ValueError(
                f"{checkpoint} was saved by a run with seed {saved_seed}, but this one has seed {seed}, which orders "
                f"the prompts differently. Resume with `seed={saved_seed}`."
            )
        if content["scorer"] is None:
            raise ValueError(f"{self._not_saved} {checkpoint} therefore lacks it; start a new run.")
        # The order of prompts and the first responses go by rows.
        if prompt_ids != self.router.prompt_ids:
            raise ValueError(
                f"{checkpoint} was saved with the same prompts in another order. Shuffle with the seed of that run, "
                f"or sort the rows as the column `prompt_id` of {checkpoint / _PARQUET} has them."
            )

    @property
    def _not_saved(self) -> str:
        return _NOT_SAVED.format(name=type(self.scorer.estimator).__name__)


def _digest(content: dict[str, Any], table: Path) -> str:
    return hashlib.sha256(json.dumps(content).encode() + table.read_bytes()).hexdigest()
