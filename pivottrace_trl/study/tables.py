"""Tables of a study for the terminal."""

from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from .measure import SHARES, LabelledPool, ScoreReport


def print_study(reports: Mapping[str, ScoreReport], pool: LabelledPool) -> None:
    """Print the quality of every score, best first."""
    console = Console()
    votes = "" if pool.vote_is_right is None else f", {pool.vote_is_right.mean():.1%} of the majority votes are right"
    table = Table(title=f"{len(pool.is_wrong)} prompts, {pool.is_wrong.mean():.1%} of the responses are wrong{votes}")
    columns = ["score", "AUROC", "-length", "rho", "tokens", "error"]
    for column in columns:
        table.add_column(column, justify="left" if column == "score" else "right", no_wrap=True)
    for name, report in reports.items():
        rho = report.spearman.value
        table.add_row(
            name,
            str(report.auroc),
            f"{report.auroc_less_length.value:.3f}",
            f"{rho:.2f}" if np.isfinite(rho) else "-",
            f"{report.tokens_per_prompt:.0f}",
            f"{report.calibration_error:.2f}{' flat' if report.calibration.is_flat else ''}",
        )
    console.print(table)
    console.print(
        "-length: AUROC with response length regressed out. rho: rank correlation with failure over the samples. "
        "tokens: generated per prompt. error: mean difference between predicted and observed success."
    )
    bought = Table(
        title="Wrong responses that are annotated / discarded ones that are right / other votes that are right"
    )
    bought.add_column("score")
    for share in SHARES:
        bought.add_column(f"{share:.1%} annotated", justify="right")
    for name, report in reports.items():
        cells = [f"{p.recall:.0%} / {_percent(p.purity)} / {_percent(p.vote_accuracy)}" for p in report.purchases]
        bought.add_row(name, *cells)
    console.print(bought)


def _percent(value: float) -> str:
    return f"{value:.0%}" if np.isfinite(value) else "-"
