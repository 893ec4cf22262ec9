"""The collapse monitor against simulated runs: it stays quiet, it notices, it lets go again."""

import json

import numpy as np
import pytest

from pivottrace_trl.routing import CollapseMonitor


def run(seed, num_steps, weak, accuracy, monitor=None):
    """Steps at which the monitor was paused; 8 groups of 8 rollouts a step, 30% annotated, prompts of all levels."""
    rng, monitor = np.random.default_rng(seed), monitor or CollapseMonitor()

    def draw(num_groups, mean):
        return (rng.binomial(8, rng.beta(2 * mean + 0.2, 2 * (1 - mean) + 0.2, num_groups)) / 8).tolist()

    paused = []
    for step in range(num_steps):
        num_annotated = rng.binomial(8, 0.3)
        monitor.update(draw(8 - num_annotated, weak(step)), draw(num_annotated, accuracy(step)))
        if monitor.is_paused:
            paused.append(step)
    return paused


def test_quiet_while_nothing_changes():
    alarms = [bool(run(seed, 1000, lambda step: 0.6, lambda step: 0.5)) for seed in range(20)]
    assert sum(alarms) <= 1


def test_quiet_while_it_learns():
    def rising(step):
        return 0.4 + 0.4 * min(step / 400, 1)

    assert sum(bool(run(seed, 500, rising, rising)) for seed in range(10)) <= 1
    # Votes that fail while labels do well, and both getting worse, are no collapse either.
    assert not run(0, 400, lambda step: 0.8 - 0.5 * step / 400, rising)
    assert not run(0, 400, lambda step: 0.8 - 0.5 * step / 400, lambda step: 0.8 - 0.5 * step / 400)


@pytest.mark.parametrize(("num_steps", "at_least"), [(100, 10), (300, 9)])
def test_a_collapse_is_noticed(num_steps, at_least, caplog):
    def weak(step):
        return 0.6 + 0.35 * min(step / num_steps, 1)

    def accuracy(step):
        return 0.5 - 0.4 * min(step / num_steps, 1)

    paused = [run(seed, num_steps + 100, weak, accuracy) for seed in range(10)]
    assert sum(bool(steps) and steps[0] < num_steps + 60 for steps in paused) >= at_least
    assert "rewards on pseudo-labels rose from" in caplog.text and "fell" in caplog.text


def test_it_lets_go_when_the_accuracy_is_back(caplog):
    monitor, told = CollapseMonitor(), []
    monitor.on_pause = told.append
    run(0, 160, lambda step: 0.6 + 0.35 * step / 160, lambda step: 0.5 - 0.4 * step / 160, monitor)
    assert monitor.is_paused and monitor.num_pauses == 1
    # Once, and not with every batch of the pause.
    (message,) = told
    assert message in caplog.text and message.startswith("Collapse: over the last ")
    # A checkpoint in between changes nothing.
    resumed = CollapseMonitor()
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    steps = [run(1, 200, lambda step: 0.6, lambda step: 0.6, m) for m in (monitor, resumed)]
    assert steps[0] == steps[1] and 0 < len(steps[0]) < 120 and not monitor.is_paused
    assert "Pseudo-labels go on" in caplog.text


def test_batches_without_groups_of_one_kind():
    monitor = CollapseMonitor()
    for _ in range(300):
        monitor.update([], [0.5, 0.25])
        monitor.update([1.0], [])
    monitor.update([], [])
    assert not monitor.is_paused and len(monitor.state_dict()["batches"]) < 600
