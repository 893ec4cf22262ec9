"""What a training run leaves in `output_dir/_pivottrace`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ..estimators import PivotDensity
from ..files import reading, write_json, write_parquet
from ..routing.router import PoolRouter
from ..routing.triage import Route, TriageResult, count_routes
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from .plots import plot_calibration, plot_route_flow, plot_scores, plot_trace


class RunReport:
    """
    Writes the routes of every epoch as they are made, and tables and plots at the end.

    Args:
        output_dir (`Path`):
            Folder for `routes-epoch-000.parquet` and so on, `summary.json`, `trace.png`,
            `calibration.png` and `scores.png` (of the latest routing) and `route_flow.png`.
    """

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self._routes: list[np.ndarray] = []
        self._epochs: list[int] = []
        self._example: tuple[Rollout, ResponseTrace] | None = None
        self._threshold = 0.0

    @property
    def num_routings(self) -> int:
        """Number of routings so far."""
        return len(self._routes)

    def begin(self) -> None:
        """Remove what an earlier run left in the folder of its routings: they would be taken for those of this one."""
        for path in self._tables().values():
            path.unlink()

    def resume(self, epoch: int) -> None:
        """
        Take up the routings of a run that goes on, and remove those that it had made beyond this point.

        Args:
            epoch (`int`): epoch of the latest routing.
        """
        self._epochs, self._routes = [], []
        for number, path in self._tables().items():
            if number > epoch:
                path.unlink()
                continue
            with reading(path, "It is no table of routes: remove it, or run again."):
                names = pq.read_table(path, columns=["route"])["route"].to_pylist()
                self._routes.append(np.array([Route[name.upper()] for name in names], np.int8))
            self._epochs.append(number)

    def _tables(self) -> dict[int, Path]:
        """The tables of routes in the folder, by epoch."""
        paths = sorted(self.output_dir.glob("routes-epoch-*.parquet"))
        return {int(path.stem.removeprefix("routes-epoch-")): path for path in paths}

    def note_traces(self, rollouts: list[Rollout], traces: list[ResponseTrace], density: PivotDensity) -> None:
        """Keep the response with the most pivots for the trace plot."""
        densities = np.nan_to_num(density(traces))
        lengths = np.array([len(trace) for trace in traces])
        # The density of a very short response is an accident: count pivots instead.
        best = int(np.argmax(densities * lengths))
        self._example = (rollouts[best], traces[best])
        self._threshold = density.threshold or 0.0

    def note_routing(
        self, epoch: int, router: PoolRouter, result: TriageResult, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Write the routes of an epoch and its plots; the trace plot with the first of them."""
        is_probe = np.isin(np.arange(len(router.prompt_ids)), router.probes)
        names = np.array([route.name.lower() for route in Route])
        columns = {
            "prompt_id": router.prompt_ids,
            "route": names[result.routes],
            "score": router.scores,
            "pivot_density": router.densities,
            "is_probe": is_probe,
            "is_labelled": router.evidence.is_labelled,
            "pass_rate": router.evidence.pass_rate,
            "agreement": router.evidence.agreement,
        }
        write_parquet(self.output_dir / f"routes-epoch-{epoch:03d}.parquet", columns)
        if np.isfinite(router.evidence.pass_rate).any():
            config, path = router.config, self.output_dir / "calibration.png"
            plot_calibration(result, router.evidence, config.tau_high, config.tau_low, path)
        self._routes.append(result.routes.copy())
        self._epochs.append(epoch)
        plot_scores(router.scores, router.densities, result, self.output_dir / "scores.png")
        plot_route_flow(self._routes, self.output_dir / "route_flow.png")
        if self._example is not None and len(self._routes) == 1:
            rollout, trace = self._example
            tokens = tokenizer.batch_decode([[token] for token in rollout.completion_ids])
            (title,) = tokenizer.batch_decode([rollout.prompt_ids], skip_special_tokens=True)
            plot_trace(trace, tokens, self._threshold, self.output_dir / "trace.png", title)

    def finish(self, summary: dict[str, Any], router: PoolRouter, log_history: list[dict[str, float]]) -> None:
        """Write the summary and print the table."""
        write_json(self.output_dir / "summary.json", summary)
        table = Table(title="PivotTrace")
        table.add_column("epoch", justify="right")
        for route in Route:
            table.add_column(route.name.lower(), justify="right")
        for epoch, routes in zip(self._epochs, self._routes, strict=True):
            table.add_row(str(epoch), *(str(count) for count in count_routes(routes).values()))
        console = Console()
        console.print(table)
        logged = [entry["pivottrace/pseudo_label_accuracy"] for entry in log_history
                  if entry.get("pivottrace/pseudo_label_accuracy") is not None]  # fmt: skip
        accuracy = f"; votes right on annotated prompts: {np.mean(logged):.0%}" if logged else ""
        console.print(
            f"Labels bought: {summary['annotated']} of {summary['annotation_budget']} allowed, "
            f"for a pool of {summary['pool_size']}{accuracy}. Files: {self.output_dir}"
        )
