"""What all figures share: colours, clean axes, and how they are saved."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..files import replace_atomically
from ..routing.triage import Route


BLUE, RED, GREY, LIGHT = "#2f6fb2", "#c8453b", "#9aa5b1", "#c9d3dd"
ROUTE_COLORS = {Route.DISCARD: GREY, Route.WEAK: "#f2a541", Route.ANNOTATE: BLUE}


@dataclass(frozen=True)
class Picture:
    """
    Panels that belong together, each a function that draws it: as one wide figure for a document, or one by one for a
    page, where they find room side by side or below each other. The legend is the page's own.
    """

    panels: Sequence[Callable[[Axes], None]]
    legend: dict[str, str]  # name to colour
    size: tuple[float, float] = (4.2, 3.4)  # of a panel, in inches
    most_beside: int = 4

    def whole(self) -> Figure:
        """All panels in one figure, with a legend below."""
        num_columns = min(self.most_beside, len(self.panels))
        num_rows = -(-len(self.panels) // num_columns)
        width, height = self.size
        figure = Figure(figsize=(width * num_columns, height * num_rows + 0.5), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for draw, axes in zip(self.panels, grid, strict=False):
            draw(axes)
        for axes in grid[len(self.panels) :]:
            axes.remove()
        handles = [Patch(color=color, label=name) for name, color in self.legend.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return figure

    def single(self) -> list[bytes]:
        """Each panel as a PNG of its own."""
        pictures = []
        for draw in self.panels:
            figure = Figure(figsize=self.size, layout="constrained")
            draw(figure.add_subplot())
            file = io.BytesIO()
            _write(figure, file, dpi=160)
            pictures.append(file.getvalue())
        return pictures


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, its panels open at the top and on the right; without the global state of pyplot."""
    replace_atomically(path, lambda temporary: _write(figure, temporary, dpi=120))


def _write(figure: Figure, file: Path | io.BytesIO, dpi: int) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=dpi)
