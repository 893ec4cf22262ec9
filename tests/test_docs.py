"""The site builds without a warning, holds every public name, and loads nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pivottrace_trl

from .test_structure import ROOMS_WITH_NAMES


ROOT = Path(__file__).parent.parent


def test_the_site(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    rooms = [importlib.import_module(f"pivottrace_trl.{room}") for room in ROOMS_WITH_NAMES]
    names = {name: f"{room.__name__}.{name}" for room in [*rooms, pivottrace_trl] for name in room.__all__}
    assert len(names) > 70 and not [name for name in names.values() if f'id="{name}"' not in reference]
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > 10
    loaded = [
        url for page in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    ]
    assert not loaded
