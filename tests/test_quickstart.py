"""The quickstart notebook runs from top to bottom, and is committed as a whole run left it."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from pivottrace_trl import AnnotationLedger
from pivottrace_trl.cli import main


PATH = Path(__file__).parent.parent / "examples" / "quickstart_colab.ipynb"


@pytest.fixture
def notebook():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


def outputs_of(notebook, identity, kind):
    """What a cell showed as `kind`, a MIME type; printed text is `stdout`."""
    (cell,) = [cell for cell in notebook.cells if cell.id == identity]
    if kind == "stdout":
        return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def test_it_is_committed_as_a_whole_run_left_it(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id) for cell in notebook.cells)  # names, not random numbers
    assert not {key for cell in notebook.cells for key in cell.metadata}
    # The file is as nbformat writes it, so that a change shows as what it is.
    assert PATH.read_text() == nbformat.writes(notebook) + "\n"
    # What it ends on is what its own cells say.
    (table,) = outputs_of(notebook, "after", "text/plain")
    assert outputs_of(notebook, "before", "stdout").split()[0] in table
    assert re.search(r"(\d+ of \d+) labels bought", outputs_of(notebook, "ledger", "stdout"))
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert not re.findall(r"/(?:home|tmp|root|work)/", shown), "a path of the machine that ran it"


def test_it_installs_from_the_address_of_the_package(notebook):
    (address,) = re.findall(r'repository = "https://(.+?)"', (PATH.parent.parent / "setup.py").read_text())
    sources = {cell.id: cell.source for cell in notebook.cells}
    assert f"%pip install -q git+https://{address}\n" in sources["install"]
    path = address.removeprefix("github.com/")
    assert f"/github/{path}/blob/main/examples/{PATH.name})" in sources["title"]
    assert set(re.findall(r"github\.com/([^/]+/pivottrace-trl)", " ".join(sources.values()))) == {path}


def test_every_cell_compiles_and_the_two_lines_are_there(notebook):
    sources = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    for source in sources.values():
        ast.parse(re.sub(r"^( *)%pip .*$", r"\1pass", source, flags=re.MULTILINE))
    lines = [line for line in sources["two-lines"].splitlines() if line and not line.startswith("from")]
    assert lines == [
        "callback = PivotDensityCallback(trainer, annotation_budget=0.293)",
        "trainer.add_callback(callback)",
    ]


def test_its_links_and_commands_exist(notebook, capsys):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    # In Colab there is nothing beside the notebook: links to the repository are whole addresses.
    assert not re.findall(r"\]\((?!https:)([^)]+)\)", text)
    links = re.findall(r"\]\(https://github\.com/[^/]+/pivottrace-trl/blob/main/([^)]+)\)", text)
    assert len(links) >= 5 and all((PATH.parent.parent / link).is_file() for link in links)
    for command in set(re.findall(r"`pivottrace (\w+)", text)):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, capsys.readouterr().err


# What makes it short enough for a test: cell, what it says, and what is said instead.
SHORTER = [
    ("settings", "BATCH_SIZE = 60, 80, 64", "BATCH_SIZE = 2, 80, 64"),
    ("pool", "make_pool(256, seed=0)", "make_pool(128, seed=0)"),
    ("pool", "make_pool(256, seed=1", "make_pool(16, seed=1"),
    ("trainer", "MAX_STEPS // 10", "1"),
]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = {cell.id: cell for cell in notebook.cells}
    for identity, said, instead in SHORTER:
        assert cells[identity].source.count(said) == 1
        cells[identity].source = cells[identity].source.replace(said, instead)
    # Without folders of installed kernels, what is left is that of this interpreter.
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    NotebookClient(notebook, km=manager, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    (summary,) = outputs_of(notebook, "summary", "text/plain")
    summary = ast.literal_eval(summary)
    assert summary["pool_size"] == 128 == sum(summary["routes"].values())
    assert 0 < summary["annotated"] <= summary["annotation_budget"] == 37
    for identity in ("route-flow", "calibration", "trace", "curve"):
        assert len(outputs_of(notebook, identity, "image/png")) == 1, identity
    (table,) = outputs_of(notebook, "table", "text/plain")
    assert all(name in table for name, count in summary["routes"].items() if count)

    ledger = AnnotationLedger.open(tmp_path / "quickstart" / "_pivottrace" / "ledger.sqlite")
    assert ledger.num_bought == summary["annotated"]
    said = outputs_of(notebook, "ledger", "stdout")
    assert f"{ledger.num_bought} of 37 labels bought" in said and said.rstrip().endswith("None")
    (gained,) = outputs_of(notebook, "after", "text/plain")
    assert f"{ledger.num_bought} of 128" in gained
    assert (tmp_path / "quickstart" / "adapter" / "adapter_model.safetensors").is_file()
