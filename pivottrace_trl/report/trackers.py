"""What a run shows in the trainer's trackers beside its scalars: pictures, a table of routes, an alert."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from ..processes import Processes
from ..routing.router import PoolRouter
from ..routing.triage import Route


logger = logging.get_logger(__name__)

# Where transformers puts scalars called `pivottrace/...`, so that all of the run is in one section.
_SECTION = "train/pivottrace"
# A page with more rows can be read by nobody, and wandb cuts off beyond 10,000.
_MAX_ROWS = 1000
_COLLAPSE = "PivotTrace: pseudo-labels are paused"


class Trackers:
    """
    The trackers of a trainer, as far as they take more than scalars: wandb, trackio, and for pictures TensorBoard. The
    main process alone talks to them. One that fails is told of once and left alone; training goes on, and all of it is
    in the private folder of the run anyway.

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer; its callbacks are its trackers.
        processes ([`Processes`]):
            The processes of the run.
        texts (`Callable[[Sequence[int]], Iterable[str]]`):
            The questions of some rows of the pool. They are shown where `log_completions` shows prompts.
    """

    def __init__(self, trainer: Any, processes: Processes, texts: Callable[[Sequence[int]], Iterable[str]]):
        self._trainer, self._processes, self._texts = trainer, processes, texts
        self._num_shown = -1  # routings when pictures and table were last sent
        self._failed: set[str] = set()

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log scalars with the trainer; all processes call it."""
        trainer = self._trainer
        # TRL would print and send the completions of the latest step once more, or an empty table at first.
        log_completions, trainer.log_completions = trainer.log_completions, False
        try:
            trainer.log({f"pivottrace/{name}": value for name, value in metrics.items()})
        finally:
            trainer.log_completions = log_completions

    def show(self, router: PoolRouter, pictures: Mapping[str, Path]) -> None:
        """Send pictures that exist, and the routes, unless the pool was not routed since the last time."""
        if not self._processes.is_main or router.num_routings == self._num_shown:
            return
        self._num_shown = router.num_routings
        pictures = {f"{_SECTION}/{name}": path for name, path in pictures.items() if path.is_file()}
        for name, tracker in self._media.items():
            self._try(name, partial(self._show_in, tracker, router, pictures))
        for writer in self._writers:
            self._try("TensorBoard", partial(self._draw_in, writer, pictures))

    def _show_in(self, tracker: Any, router: PoolRouter, pictures: Mapping[str, Path]) -> None:
        shown = {name: tracker.Image(str(path)) for name, path in pictures.items()}
        table = tracker.Table(dataframe=self._routes(router))
        step = {"train/global_step": self._trainer.state.global_step}
        tracker.log({**shown, f"{_SECTION}/routes": table, **step})

    def _draw_in(self, writer: Any, pictures: Mapping[str, Path]) -> None:
        for name, path in pictures.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            writer.add_image(name, pixels, self._trainer.state.global_step, dataformats="HWC")

    def alert(self, text: str) -> None:
        """Raise an alert that pseudo-labels are paused, where the tracker has alerts."""
        if self._processes.is_main:
            for name, tracker in self._media.items():
                self._try(name, partial(tracker.alert, _COLLAPSE, text, level=tracker.AlertLevel.WARN))

    @property
    def _media(self) -> dict[str, Any]:
        """The modules of trackers with pictures, tables and alerts that are running; they have these in common."""
        running: dict[str, Any] = {}
        for callback in self._trainer.callback_handler.callbacks:
            # Who made such a callback has the package; others need not load it.
            if isinstance(callback, WandbCallback):
                import wandb

                if wandb.run is not None:
                    running["wandb"] = wandb
            elif isinstance(callback, TrackioCallback):
                import trackio

                if trackio.context_vars.current_run.get() is not None:
                    running["trackio"] = trackio
        return running

    @property
    def _writers(self) -> list[Any]:
        callbacks = self._trainer.callback_handler.callbacks
        writers = [callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)]
        return [writer for writer in writers if writer is not None]

    def _try(self, name: str, send: Callable[[], None]) -> None:
        if name in self._failed:
            return
        try:
            send()
        except Exception as error:
            self._failed.add(name)
            logger.warning(
                f"{name} did not take pictures, routes or an alert of this run ({type(error).__name__}: {error}), and "
                "gets no more of them. Training goes on; scalars are logged as before, and the pictures and routes "
                "are in the run's private folder."
            )

    def _routes(self, router: PoolRouter) -> pd.DataFrame:
        """The routes, most uncertain prompts first; of more than a thousand, a thousand evenly spaced ones."""
        order = np.argsort(-np.nan_to_num(router.scores, nan=-np.inf), kind="stable")
        rows = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MAX_ROWS)).astype(int))]
        ids = [router.prompt_ids[row] for row in rows]
        own, bought = router.ledger.own_ids, router.ledger.bought_ids
        evidence = router.evidence
        columns: dict[str, Any] = {"prompt_id": ids}
        if self._trainer.log_completions:
            columns["question"] = list(self._texts(rows.tolist()))
        columns |= {
            "route": [Route(route).name.lower() for route in router.routes[rows]],
            "label_source": ["own" if i in own else "bought" if i in bought else "none" for i in ids],
            "score": router.scores[rows],
            "pivot_density": router.densities[rows],
            "agreement": evidence.agreement[rows],
            "pass_rate": evidence.pass_rate[rows],
        }
        frame = pd.DataFrame(columns)
        # What is not known is blank, and no word "NaN".
        return frame.astype(object).where(frame.notna(), None)
