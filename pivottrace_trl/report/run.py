"""What a training run or a triage leaves in its folder, pictures included."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments

from ..estimators import PivotDensity
from ..files import write_json
from ..offline import PoolTriage
from ..routing.router import PoolRouter
from ..routing.tables import find_routes, read_routes, write_routes
from ..routing.triage import TriageResult
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from ..training.gate import say
from .attempts import write_attempts
from .messages import describe_end
from .plots import plot_calibration, plot_route_flow, plot_scores, plot_trace
from .record import RUN_FILE, record_run
from .tables import print_routings


class RunReport:
    """Writes the routes and the pictures of a training run as they are made, a summary and a table at the end."""

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self._routes: dict[int, np.ndarray] = {}  # by epoch

    @property
    def pictures(self) -> dict[str, Path]:
        """Where the pictures of the latest routing are, if there is anything to draw, by name."""
        return {name: self.output_dir / f"{name}.png" for name in ("route_flow", "calibration")}

    def clear(self) -> None:
        """Remove routes and pictures that an earlier run left in the folder: they would be taken for this one's."""
        for path in [*find_routes(self.output_dir).values(), *self.pictures.values()]:
            path.unlink(missing_ok=True)

    def resume(self, epoch: int) -> None:
        """Take up the routings of a run that goes on after an epoch, and remove those that it had made beyond it."""
        tables = find_routes(self.output_dir)
        for number in [number for number in tables if number > epoch]:
            tables.pop(number).unlink()
        self._routes = {number: read_routes(path)[0] for number, path in tables.items()}

    def plot_example(
        self,
        rollouts: Sequence[Rollout],
        traces: Sequence[ResponseTrace],
        density: PivotDensity,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Draw the trace of the response with the most pivots: the density of a very short one is an accident."""
        num_pivots = np.nan_to_num(density(traces)) * [len(trace) for trace in traces]
        best = int(np.argmax(num_pivots))
        tokens = tokenizer.batch_decode([[token] for token in rollouts[best].completion_ids])
        (title,) = tokenizer.batch_decode([rollouts[best].prompt_ids], skip_special_tokens=True)
        plot_trace(traces[best], tokens, density.threshold or 0.0, self.output_dir / "trace.png", title)

    def write_routing(self, epoch: int, router: PoolRouter, result: TriageResult) -> None:
        """Write the routes of an epoch, and draw them."""
        write_routes(self.output_dir, epoch, router, result)
        self._routes[epoch] = result.routes.copy()
        _plot_routing(router, result, self.output_dir)
        plot_route_flow(list(self._routes.values()), self.output_dir / "route_flow.png")

    def finish(
        self,
        summary: Mapping[str, Any],
        args: TrainingArguments,
        state: TrainerState,
        settings: Mapping[str, Any],
        router: PoolRouter,
    ) -> None:
        """Write the summary and the record of a run that ends, and print its routes and what to look at."""
        write_json(self.output_dir / "summary.json", summary)
        print_routings(self._routes)
        say(describe_end(summary, state.log_history, router, self.output_dir))
        record_run(
            self.output_dir / RUN_FILE,
            "PivotTrace",
            args,
            state,
            num_labels=summary["annotated"],
            pool_size=summary["pool_size"],
            settings=settings,
        )


def plot_triage(outcome: PoolTriage, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> None:
    """Draw the scores and the calibration of a triage, and write the attempts for the desk."""
    router, traces = outcome.router, outcome.pool_scores.traces
    _plot_routing(router, outcome.result, output_dir)
    path = output_dir / "attempts.parquet"
    write_attempts(path, router.prompt_ids, outcome.rollouts, traces, outcome.pivot_threshold, tokenizer)


def _plot_routing(router: PoolRouter, result: TriageResult, folder: Path) -> None:
    plot_scores(router.scores, router.densities, result, folder / "scores.png")
    if np.isfinite(router.evidence.pass_rate).any():
        plot_calibration(result, router.evidence, router.config, folder / "calibration.png")
