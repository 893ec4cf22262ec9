"""Seeded runs come to what is recorded, and the comparison notices what changes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parent.parent / "scripts"
RECORD = Path(__file__).parent / "data" / "invariant.json"


@pytest.fixture
def invariant(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import invariant

    return invariant


def test_seeded_runs_come_to_what_is_recorded(invariant):
    """In a process of its own: nothing that other tests set reaches the runs."""
    done = subprocess.run([sys.executable, str(SCRIPTS / "invariant.py"), "--check"], capture_output=True, text=True)
    if done.returncode == invariant.CANNOT_TELL:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def read_runs():
    return json.loads(RECORD.read_text())["runs"]


def test_the_smallest_change_is_noticed(invariant):
    expected = read_runs()
    assert invariant.find_differences(expected, read_runs(), is_exact=True) == []
    found = read_runs()
    routing = found["grpo"]["routings"][1]
    routing["order"][0], routing["order"][4] = routing["order"][4], routing["order"][0]
    routing["routes"][3] = 2 - routing["routes"][3]
    found["rloo"]["bought"].reverse()
    label = found["consistency"]["bought"][2][2]
    label["solution"] += "0"
    for is_exact in (True, False):
        places = {d.split(":")[0] for d in invariant.find_differences(expected, found, is_exact)}
        assert {"grpo > routings[1] > order[0]", "grpo > routings[1] > order[4]"} <= places
        assert "consistency > bought[2][2] > solution" in places and any("rloo > bought" in place for place in places)


def test_floats_are_compared_to_the_last_bit_where_they_can_be(invariant):
    expected, found = read_runs(), read_runs()
    scores = found["triage"]["scores"]
    scores[2] = math.nextafter(scores[2], math.inf)
    found["grpo"]["weights"]["sha256"] = "other"
    places = [d.split(":")[0] for d in invariant.find_differences(expected, found, is_exact=True)]
    assert places == ["grpo > weights > sha256", "triage > scores[2]"]
    assert invariant.find_differences(expected, found, is_exact=False) == []
    scores[2] *= 1.001
    assert len(invariant.find_differences(expected, found, is_exact=False)) == 1


def test_a_resumed_run_that_goes_another_way_and_near_ties_are_noticed(invariant):
    runs = read_runs()
    assert invariant.check_resuming(runs) == []
    runs["grpo resumed"]["resumed"]["routings"][-1]["order"].reverse()
    runs["grpo resumed"]["resumed"]["weights"]["sha256"] = "other"
    found = invariant.check_resuming(runs)
    assert any("epoch 2 > order" in place for place in found) and any("sha256" in place for place in found)
    assert invariant.find_near_ties(runs["grpo"], "grpo") == []
    scores = runs["grpo"]["routings"][0]["scores"]
    scores[1] = scores[0] * (1 + 1e-7)
    assert len(invariant.find_near_ties(runs["grpo"], "grpo")) == 1
