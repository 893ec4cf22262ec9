"""The comparison of TRL's own tests with and without the callback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parent.parent / "scripts"
CHECKOUT = os.environ.get("TRL_CHECKOUT")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import trl_own_tests

    return trl_own_tests


def record(outcome, attached=0, refused=(), reason=""):
    return {"outcome": outcome, "reason": reason, "attached": attached, "refused": list(refused)}


@pytest.mark.parametrize(
    "without, attached, verdict",
    [
        (record("passed"), record("passed", attached=1), "attached"),
        (record("passed"), record("passed"), "no trainer"),
        (record("passed"), record("passed", refused=["ValueError: because"]), "refused"),
        (record("passed"), record("failed", attached=1), "broken"),
        (record("passed"), record("skipped"), "broken"),
        (record("skipped"), record("failed"), "broken"),
        (record("xfailed"), record("xpassed"), "broken"),
        (record("passed"), None, "broken"),
        (record("failed"), record("failed"), "failed in both"),
        (record("failed"), record("passed", attached=1), "failed in both"),
        (record("skipped", reason="no GPU"), record("skipped"), "skipped"),
    ],
)
def test_verdicts(script, without, attached, verdict):
    name = "tests/test_grpo_trainer.py::TestGRPOTrainer::test_one"
    (row,) = script.compare({name: without}, {} if attached is None else {name: attached})
    assert row["verdict"] == verdict
    assert row["test"] == "TestGRPOTrainer::test_one"


def test_a_folder_without_tests_is_refused(tmp_path):
    command = [sys.executable, str(SCRIPTS / "trl_own_tests.py"), "--tests", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"--tests is {tmp_path}" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="set TRL_CHECKOUT to a checkout of TRL: its package holds no tests")
def test_nothing_fails_that_passes_without_the_callback(tmp_path):
    command = [sys.executable, str(SCRIPTS / "trl_own_tests.py"), "--tests", str(CHECKOUT), "--output", str(tmp_path)]
    result = subprocess.run(command)
    assert result.returncode == 0, (tmp_path / "trl_own_tests.md").read_text()
