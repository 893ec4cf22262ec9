"""
Draw docs/images/house.png from the imports of the package, and write the table of rooms in docs/contributing.md from
their docstrings.

    python scripts/house.py

The levels are those of tests/test_structure.py. An arrow that others already imply is left out, and so are those
between files of the ground.
"""

import ast
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pivottrace_trl"


def read_levels() -> list[list[str]]:
    """The rooms from the ground up, one list a level."""
    tree = ast.parse((ROOT / "tests" / "test_structure.py").read_text())
    values: dict[str, Any] = {
        ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)
    }
    levels = [values["GROUND"], *values["ROOMS"].elts]
    return [[ast.literal_eval(room) for room in level.elts] for level in levels]  # as they are written


def read_imports(room: str) -> set[str]:
    """The other rooms that the files of a room import from."""
    found = set()
    for path in [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else (PACKAGE / room).rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts) - 1
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > depth and node.module:
                found.add(node.module.split(".")[0])
    return found - {room}


def read_arrows() -> set[tuple[str, str]]:
    """Who imports from whom, without what follows from the other arrows."""
    imports = {room: read_imports(room) for level in read_levels() for room in level}

    def reached(room: str) -> set[str]:
        return imports[room].union(*map(reached, imports[room]))

    return {
        (room, other)
        for room, others in imports.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    }


def draw(path: Path) -> None:
    levels = read_levels()
    figure = Figure(figsize=(7, 7))
    axes = figure.add_axes((0, 0, 1, 1))
    places = {
        room: ((column + 1) / (len(level) + 1), height)
        for height, level in enumerate(levels)
        for column, room in enumerate(level)
    }
    boxes = {}
    for room, (x, y) in places.items():
        is_folder = (PACKAGE / room).is_dir()
        style = {"boxstyle": "round,pad=0.5", "facecolor": "#e8eef7" if is_folder else "white", "edgecolor": "#3b6ea8"}
        name = f"{room}/" if is_folder else f"{room}.py"
        boxes[room] = axes.text(x, y, name, ha="center", va="center", bbox=style, zorder=2).get_bbox_patch()
    figure.draw_without_rendering()  # the boxes take their places, and the arrows end at them
    for room, other in sorted(read_arrows()):
        if places[room][1] > places[other][1]:
            arrow = {"arrowstyle": "-|>", "color": "#8a8f98", "patchA": boxes[room], "patchB": boxes[other]}
            axes.annotate("", places[other], places[room], arrowprops=arrow, zorder=1)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(levels) - 0.4))
    axes.axis("off")
    figure.savefig(path, dpi=110)


def describe_rooms() -> str:
    """The table of rooms, from the top down: the first paragraph of each docstring."""
    rows = ["| room | what it holds |", "|---|---|"]
    for room in [room for level in reversed(read_levels()) for room in level]:
        name, file = (f"{room}/", f"{room}/__init__.py") if (PACKAGE / room).is_dir() else (f"{room}.py", f"{room}.py")
        paragraph = (ast.get_docstring(ast.parse((PACKAGE / file).read_text())) or "").split("\n\n")[0]
        rows.append(f"| `{name}` | {' '.join(paragraph.split())} |")
    return "\n".join(rows) + "\n"


def write_table(page: Path) -> None:
    text = re.sub(r"\| room \|.*?\n(?!\|)", lambda _: describe_rooms(), page.read_text(), flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    draw(ROOT / "docs" / "images" / "house.png")
    write_table(ROOT / "docs" / "contributing.md")
