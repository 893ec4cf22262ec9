"""The house keeps its order: imports go downwards, public names are documented, and nothing else is shown."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

import pivottrace_trl

from .conftest import make_model, make_pool


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pivottrace_trl"
# From the ground up: a room may import from lower lines only, a file of the ground from those to its left.
GROUND = ["files", "progress", "pool", "processes"]
ROOMS = [
    {"tracing", "answers"},
    {"estimators", "labels"},
    {"scoring", "routing"},
    {"training", "offline"},
    {"report"},
    {"callback", "study", "desk"},
    {"demo"},
    {"cli"},
]
LEVELS = {
    **{name: number - len(GROUND) for number, name in enumerate(GROUND)},
    **{room: number for number, rooms in enumerate(ROOMS) for room in rooms},
}
ROOMS_WITH_NAMES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if "__all__" in path.read_text())


def imported_rooms(path: Path) -> set[str]:
    depth = len(path.relative_to(PACKAGE).parts) - 1
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return rooms


def test_imports_go_downwards():
    upwards = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in ("__init__", "__main__"):
            others = imported_rooms(path) - {room}
            upwards += [f"{path.relative_to(PACKAGE)}: {other}" for other in others if LEVELS[other] >= LEVELS[room]]
    assert not upwards


def test_the_front_hall_stays_small():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= 22, sorted(entries)


def test_no_file_is_a_maze():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > 400}


def public_names() -> dict[str, list[str]]:
    """Package to the names that it shows: the root, and the rooms that have any."""
    packages = ["pivottrace_trl", *(f"pivottrace_trl.{room}" for room in ROOMS_WITH_NAMES)]
    return {package: importlib.import_module(package).__all__ for package in packages}


def test_the_public_names_exist():
    for package, names in public_names().items():
        module = importlib.import_module(package)
        assert not [name for name in names if not hasattr(module, name)]
        # A module of the same name would take the place of what is loaded lazily.
        assert not {path.stem for path in Path(module.__file__).parent.iterdir()} & set(names)
    assert len(pivottrace_trl.__all__) < 35


def test_every_public_name_is_documented():
    page, missing = "".join((ROOT / "docs" / name).read_text() for name in ("api.md", "estimators.md")), []
    for package, names in public_names().items():
        for name in names:
            thing = getattr(importlib.import_module(package), name)
            methods = vars(thing).items() if inspect.isclass(thing) else []
            public = [value for key, value in methods if not key.startswith("_") and inspect.isfunction(value)]
            missing += [f"{package}.{name}: {part}" for part in [thing, *public] if not inspect.getdoc(part)]
            missing += [] if f"`{name}`" in page else [f"docs/api.md: {name}"]
    assert not missing


def imports_of_the_package(code: str) -> list[tuple[str, str]]:
    """(module, name) of whatever a piece of code imports from the package."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pivottrace_trl":
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "pivottrace_trl"]
    return found


def test_examples_and_documents_import_public_names_only():
    codes = {path.name: [path.read_text()] for path in (ROOT / "examples").glob("*.py")}
    for path in (ROOT / "examples").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        codes[path.name] = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]:
        text = path.read_text()
        codes[path.name] = re.findall(r"```python\n(.*?)```", text, re.DOTALL) + re.findall(r"python -c '(.*?)'", text)
    imports = set()
    for name, pieces in codes.items():
        for code in pieces:
            python = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)  # of a notebook, to the shell
            imports |= {(name, *found) for found in imports_of_the_package(python)}
    public = public_names()
    assert len({name for name, *_ in imports}) > 8
    assert not [(name, module, what) for name, module, what in imports if what not in public.get(module, ())]


def test_people_do_not_wait_for_torch():
    """Whoever answers, or keeps answers, needs neither torch nor TRL loaded."""
    answers, labels = (", ".join(public_names()[f"pivottrace_trl.{room}"]) for room in ("answers", "labels"))
    answers = answers.replace("MathAccuracy, ", "")  # a metric of `evaluate`, which loads them
    code = f"""import sys
import pivottrace_trl.cli
from pivottrace_trl.answers import {answers}
from pivottrace_trl.labels import {labels}
assert not {{"torch", "trl"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_stands_once():
    assert importlib.metadata.version("pivottrace-trl") == pivottrace_trl.__version__


def test_relative_links_in_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_on_reliability_names_tests_that_exist():
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    page = (ROOT / "docs" / "reliability.md").read_text()
    place, missing = "", []
    # `…::test_x` stands in the file of the row above.
    for name, test in re.findall(r"`(test_\w+\.py|…)(?:::(\w+))?`", page):
        place = place if name == "…" else name
        if place not in sources or not re.search(rf"^ *(def|class) {test or 'test_'}", sources[place], re.MULTILINE):
            missing.append(f"{place}::{test}")
    assert len(page.split("`…::")) > 30 and not missing


def test_the_house_is_described_as_it_is(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import house

    files = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert set(LEVELS) == files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    page = (ROOT / "docs" / "contributing.md").read_text()
    assert house.describe_rooms() in page, "`python scripts/house.py` writes the table and draws the picture"


def test_labels_are_asked_for_in_one_place():
    asking = set()
    for path in PACKAGE.rglob("*.py"):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        asking |= {(path.name, f.name) for f in functions if re.search(r"\.ask\(|\bconsult\(", ast.unparse(f))}
    # An oracle that is made of others passes on what it is asked, by `consult`; `_filled` reads a column that is own.
    one_place = {("ledger.py", "buy"), ("column_labels.py", "_filled"), ("cascade.py", "consult")}
    assert {place for place in asking if place[1] != "ask"} == one_place


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
