"""The quickstart notebook runs from top to bottom, and is committed without what running it adds."""

import ast
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


def test_it_is_committed_without_outputs(notebook):
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)  # a name, not the random number of an editor
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
    # The file is as nbformat writes it, so that a change shows as what it is.
    assert PATH.read_text() == nbformat.writes(notebook) + "\n"


def test_every_cell_compiles_and_the_two_lines_are_there(notebook):
    sources = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    for source in sources.values():
        ast.parse(re.sub(r"^( *)%pip .*$", r"\1pass", source, flags=re.MULTILINE))
    lines = [line for line in sources["two-lines"].splitlines() if line and not line.startswith(("#", "from"))]
    assert lines == [
        "callback = PivotDensityCallback(trainer, annotation_budget=0.293)",
        "trainer.add_callback(callback)",
    ]


def test_its_links_and_commands_exist(notebook, capsys):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https:)([^)]+)\)", text)
    assert len(links) >= 3 and all((PATH.parent / link).is_file() for link in links)
    for command in set(re.findall(r"`pivottrace (\w+)", text)):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, capsys.readouterr().err


def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PIVOTTRACE_PRESET", "cpu")
    monkeypatch.setenv("PIVOTTRACE_STEPS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
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
    assert f"{ledger.num_bought} of 37 labels bought" in outputs_of(notebook, "ledger", "stdout")
    assert "probe" in outputs_of(notebook, "ledger", "text/plain")[0]
    assert outputs_of(notebook, "not-bought", "stdout").strip() == "None"
