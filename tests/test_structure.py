"""The house keeps its order: imports go downwards, public names are documented."""

import ast
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest
import torch

import pivottrace_trl

from .conftest import make_model, make_pool


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pivottrace_trl"
# From the ground up: a room may import from the rooms on lower lines only.
ROOMS = [
    {"files", "progress"},
    {"pool", "processes"},
    {"answers", "tracing"},
    {"estimators", "labels"},
    {"scoring", "routing"},
    {"offline", "training"},
    {"report"},
    {"callback", "study", "desk"},
    {"demo"},
    {"cli"},
]


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    depth = len(path.relative_to(PACKAGE).parts) - 1
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for other in imported_rooms(path) - {room}:
        assert level[other] < level[room], f"{room} imports {other}, which is not below it"


def test_the_public_names_are_sorted_and_exist():
    assert pivottrace_trl.__all__ == sorted(pivottrace_trl.__all__)
    assert all(hasattr(pivottrace_trl, name) for name in pivottrace_trl.__all__)
    # A module of the same name would take the place of what is loaded lazily.
    assert not {path.stem for path in PACKAGE.iterdir()} & set(pivottrace_trl.__all__)


@pytest.mark.parametrize("name", pivottrace_trl.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(pivottrace_trl, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    assert f"`{name}`" in (ROOT / "docs" / "api.md").read_text(), f"{name} is missing from docs/api.md"
    methods = vars(thing).items() if inspect.isclass(thing) else []
    for method, value in methods:
        if not method.startswith("_") and inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{method} has no docstring"


def test_the_version_stands_once():
    assert importlib.metadata.version("pivottrace-trl") == pivottrace_trl.__version__


def test_relative_links_in_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_labels_are_asked_for_in_one_place():
    places = [path.name for path in PACKAGE.rglob("*.py") if re.search(r"\.ask\(", path.read_text())]
    assert places == ["ledger.py"]


def test_the_examples_in_the_documents_run(make_trainer, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer()
    namespace = {
        "model": make_model("llama"),
        "tokenizer": tokenizer,
        "trainer": trainer,
        "dataset": make_pool(1000),
        "batch": {"input_ids": torch.ones(2, 20, dtype=torch.long), "attention_mask": torch.ones(2, 20)},
        "prompt_ids": [[5, 6, 7], [8, 9]],
        "completion_ids": [[10, 11, 12, 1], [13, 14, 1]],
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "standalone.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, namespace)
    assert namespace["capture"].signal().shape == (2, 20)
    assert sum(namespace["result"].counts().values()) == 1000


def test_no_file_holds_the_marks_of_an_unfinished_merge():
    places = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        *ROOT.glob("*/**/*.md"),
        *ROOT.glob("*/*.sh"),
    ]
    texts = [path for path in places if not any(part.startswith(".venv") for part in path.parts)]
    assert len(texts) > 15
    for path in texts:
        assert not re.search(r"^(<{7} |>{7} )", path.read_text(), re.MULTILINE), path
