"""
Run the quickstart notebook on its CPU preset and save it with its outputs.

    python scripts/run_notebook.py

Prints the processor time of each cell, and the memory of the kernel after it. To look at the result, `pip install
nbconvert` into an environment of its own, and

    jupyter nbconvert --to html --output-dir shots examples/quickstart_colab.ipynb
    python scripts/screenshots.py --full --output shots shots/quickstart_colab.html
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient


NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart_colab.ipynb"
_BAR = re.compile(r"\d+%\||\u2501 *\d+%|\d+/\d+ \[")  # of tqdm and of rich


class Meter(NotebookClient):
    """Prints what each cell took."""

    async def async_execute_cell(self, cell, *args, **kwargs):
        """Run one cell."""
        manager: Any = self.km
        kernel = psutil.Process(manager.provisioner.process.pid)
        before = sum(kernel.cpu_times()[:2])
        cell = await super().async_execute_cell(cell, *args, **kwargs)
        if cell.cell_type == "code":
            seconds = sum(kernel.cpu_times()[:2]) - before
            print(f"{cell.id:12} {seconds:6.1f} s {kernel.memory_info().rss / 1e9:5.1f} GB", flush=True)
        return cell


def clean(notebook) -> None:
    """Remove times of execution, progress bars, and what is shown but empty."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                lines = [line.split("\r")[-1] for line in output.text.splitlines(keepends=True)]
                output.text = "".join(line for line in lines if not _BAR.search(line))
            text = output.get("text", output.get("data", {}).get("text/plain", ""))
            if text.strip() and not _BAR.search(text):
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


def run() -> None:
    """Run the notebook and write it back."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        # Without folders of installed kernels, what is left is that of this interpreter.
        manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        Meter(notebook, km=manager, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    clean(notebook)
    notebook.metadata = metadata
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run()
