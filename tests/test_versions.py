"""The supported versions: stated once, pinned from there for `make test-oldest`, and told to users as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pivottrace_trl.training import versions


ROOT = Path(__file__).parent.parent
(REQUIREMENTS,) = re.findall(r"install_requires=\[(.*?)\],\n    extras", (ROOT / "setup.py").read_text(), re.DOTALL)
BOUNDS = dict(re.findall(r"^ *[\"']([\w-]+)>=([\w.]+)", REQUIREMENTS, re.MULTILINE))
# First words of the rows and what is oldest there.
(PAGE,) = re.findall(r"\n\| library \|.*?\n\n", (ROOT / "docs" / "reliability.md").read_text(), re.DOTALL)
TABLE = dict(re.findall(r"^\| ([\w-]+)[^|]*\| (\d[^|]*?) \|", PAGE, re.MULTILINE))


def test_requirements_state_the_supported_trl():
    (line,) = re.findall(r'"trl(.+?)"', REQUIREMENTS)
    assert SpecifierSet(line) == versions.TRL_VERSIONS


@pytest.mark.parametrize("found", ["1.13.0", "1.17.0", "2.0"])
def test_other_versions_of_trl_are_refused(found, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda package: found)
    with pytest.raises(ImportError, match=f"supports trl .*but {found} is installed.*pip install"):
        versions.check_versions()


def test_the_oldest_environment_has_the_lower_bound_of_every_requirement():
    script = [sys.executable, str(ROOT / "scripts" / "oldest.py")]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert dict(line.split("==") for line in lines) == {k: v for k, v in BOUNDS.items() if k != "torch"}


def test_the_table_of_the_documents_states_the_lower_bounds():
    assert {"trl", "transformers", "peft", "datasets", "accelerate"} <= TABLE.keys()
    for library, oldest in TABLE.items():
        if library != "torch":
            assert Version(oldest) == Version(BOUNDS[library]), library
    assert f"({BOUNDS['torch']} and newer are accepted" in TABLE["torch"]
