"""The supported versions: stated once, pinned from there for `make test-oldest`, and told to users as they are."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pivottrace_trl.training import checks, versions


ROOT = Path(__file__).parent.parent
(REQUIREMENTS,) = re.findall(r"install_requires=\[(.*?)\],\n    extras", (ROOT / "setup.py").read_text(), re.DOTALL)
BOUNDS = dict(re.findall(r"^ *[\"']([\w-]+)>=([\w.]+)", REQUIREMENTS, re.MULTILINE))
# First words of the rows and what is oldest there.
(PAGE,) = re.findall(r"\n\| library \|.*?\n\n", (ROOT / "docs" / "reliability.md").read_text(), re.DOTALL)
TABLE = dict(re.findall(r"^\| ([\w-]+)[^|]*\| (\d[^|]*?) \|", PAGE, re.MULTILINE))


def test_requirements_state_the_supported_trl():
    (line,) = re.findall(r'"trl(.+?)"', REQUIREMENTS)
    assert SpecifierSet(line) == versions.TRL_VERSIONS


def test_an_older_trl_is_refused(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda package: "1.13.0")
    with pytest.raises(ImportError, match="needs trl >=1.14, but 1.13.0 is installed.*pip install"):
        versions.check_versions()


@pytest.mark.parametrize(
    ("found", "is_newer"), [("1.16.0", False), ("1.16.3", False), ("1.17.0.dev0", True), ("2.0", True)]
)
def test_a_newer_trl_is_told_by_its_minor_version(found, is_newer, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda package: found)
    versions.check_versions()
    assert versions.is_newer_than_tested() is is_newer


def test_a_newer_trl_that_has_what_we_use_is_accepted_with_one_warning(make_trainer, monkeypatch, caplog):
    for module in (versions, checks):
        monkeypatch.setattr(module, "installed", lambda package: "1.99.0")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    for _ in range(2):
        checks.check_trainer(make_trainer())
    logger.removeHandler(caplog.handler)
    (record,) = [record for record in caplog.records if "newer than" in record.getMessage()]
    assert "pivottrace doctor" in record.getMessage()


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
