"""What all figures share: colours, clean axes, and how they are saved."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import replace_atomically
from ..routing.triage import Route


BLUE, RED, GREY, LIGHT = "#2f6fb2", "#c8453b", "#9aa5b1", "#c9d3dd"
ROUTE_COLORS = {Route.DISCARD: GREY, Route.WEAK: "#f2a541", Route.ANNOTATE: BLUE}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, its panels open at the top and on the right; without the global state of pyplot."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    replace_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
