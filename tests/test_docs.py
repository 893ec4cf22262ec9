"""The site builds without a warning, holds every public name, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pivottrace_trl


ROOT = Path(__file__).parent.parent


def test_the_site(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert not [name for name in pivottrace_trl.__all__ if f'id="pivottrace_trl.{name}"' not in reference]
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > 10
    loaded = [
        url for page in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    ]
    assert not loaded
