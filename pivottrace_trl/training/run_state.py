"""
The state of a run, for checkpoints and for the other processes. In a checkpoint, plain values are stored as JSON, and
arrays as columns of a Parquet table with one row per prompt. Nothing is pickled.
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
    "What {name} learnt of the pool cannot be saved, as its fields are not plain values: store what `fit` finds as "
    "Python numbers, strings, lists and dictionaries."
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
    Open the ledger of a run on rank 0, and write the pool file beside it. The other processes get a view of the
    ledger.

    Args:
        folder (`Path`): private folder of the run.
        processes ([`Processes`]): the processes of the run.
        vault ([`LabelVault`]): labels of the dataset. With an annotator, they are the user's own; without one, they
            may include corrections of labels that were bought.
        has_annotator (`bool`): whether there is an annotator.
        budget, prompt_ids, label_column, answer_format: see [`AnnotationLedger`].
        texts (`Callable[[Sequence[int]], Iterable[str]]`): returns the questions of some rows, for people.

    Raises:
        ValueError: if a ledger is in a place from which the trainer would upload it, or the ledger of another run
            cannot be continued.
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
    """Has a state: plain values by name, and for the router also arrays with one entry per prompt."""

    def state_dict(self) -> dict[str, Any]:
        """The state that another process needs. It has no texts, since a checkpoint may go to the hub."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Position:
    """
    The position of a run, besides what the stateful objects know.

    Attributes:
        seed (`int`): seed of the run.
        epoch (`int`): epoch of the routes.
        num_prompts (`int`): number of prompts per epoch.
        num_scoring_tokens (`int`): number of tokens spent on scoring.
        survey (`str`): identity of the first responses to the pool, which labels that are bought later verify.
    """

    seed: int
    epoch: int
    num_prompts: int
    num_scoring_tokens: int
    survey: str


@dataclass(frozen=True)
class RunState:
    """
    All objects of a run that have a state.

    Attributes:
        router ([`PoolRouter`]): scores, evidence, routes.
        scorer ([`PoolScorer`]): heads, thresholds, estimator.
        others (`Mapping[str, Stateful]`): the other objects, by name.
    """

    router: PoolRouter
    scorer: PoolScorer
    others: Mapping[str, Stateful]

    @property
    def _owners(self) -> dict[str, Stateful]:
        return {"scorer": self.scorer, "router": self.router, **self.others}

    def share(self, processes: Processes) -> None:
        """Send the state of rank 0 to the other processes, which get a view of its ledger."""
        if processes.size == 1:
            return
        states = {name: owner.state_dict() for name, owner in self._owners.items()}
        states, ledger = processes.broadcast((states, self.router.ledger.snapshot()))
        if not processes.is_main:
            self.router.ledger = LedgerCopy(ledger)
            for name, owner in self._owners.items():
                owner.load_state_dict(states[name])

    def save(self, checkpoint: Path, position: Position) -> None:
        """Save the state that the next routing and the sampler need in the folder of a checkpoint."""
        states: dict[str, Any] = {name: owner.state_dict() for name, owner in self._owners.items()}
        columns = {name: value for name, value in states["router"].items() if isinstance(value, np.ndarray)}
        states["router"] = {name: value for name, value in states["router"].items() if name not in columns}
        try:
            json.dumps(states["scorer"])
        except TypeError:
            logger.warning_once(self._not_saved + " This run cannot be resumed.")
            states["scorer"] = None
        # A checkpoint that is saved again must not look complete because of files from the last time.
        (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
        write_parquet(checkpoint / _PARQUET, {"prompt_id": self.router.prompt_ids, **columns})
        content = {"pool_id": pool_fingerprint(self.router.prompt_ids), "position": asdict(position), **states}
        digest = _digest(content, checkpoint / _PARQUET)
        text = json.dumps({"format": _FORMAT, "digest": digest, "content": content})
        replace_atomically(checkpoint / _JSON, lambda path: path.write_text(text))

    def load(self, checkpoint: Path, seed: int) -> Position:
        """
        Restore a saved state.

        Raises:
            FileNotFoundError: if the checkpoint holds no routing state.
            ValueError: if the state is damaged; if it belongs to another pool, seed or estimator; or if the fields of
                the estimator are not plain values.
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
        # From here on the data is intact, so any error is a bug of ours and is raised as it is.
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
        """Raise `ValueError` if the state belongs to another run."""
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
        # The order of prompts and the first responses refer to rows.
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
