"""Long work says how far it is: a bar in a terminal, and a line every half minute in a log."""

import threading

import pytest

from pivottrace_trl import progress
from pivottrace_trl.progress import LINE_EVERY, progress_bar


class Clock:
    """Time that passes when the test says so; who waits for it wakes up then, and is done before the test goes on."""

    def __init__(self):
        self.seconds = 0.0
        self._passed, self._is_waiting, self._is_set = threading.Semaphore(0), threading.Semaphore(0), False

    def now(self):
        return self.seconds

    def wait(self, seconds):
        """As `threading.Event.wait`."""
        assert seconds == LINE_EVERY
        self._is_waiting.release()
        self._passed.acquire()
        return self._is_set

    def set(self):
        self._is_set = True
        self._passed.release()

    def pass_half_a_minute(self):
        self._is_waiting.acquire()
        self.seconds += LINE_EVERY
        self._passed.release()
        # The line is written when the next one is waited for.
        self._is_waiting.acquire()
        self._is_waiting.release()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "Event", lambda: clock)
    return clock


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    with progress_bar("Generating responses", 5000, now=clock.now) as advance:
        clock.pass_half_a_minute()
        assert capsys.readouterr().err == "Generating responses: 0 of 5,000 (0%), 30 s so far\n"
        advance(100)
        clock.pass_half_a_minute()
        advance(100)
        assert capsys.readouterr().err == (
            "Generating responses: 100 of 5,000 (2%), 1.67 a second, 1 min 00 s so far, about 49 min 00 s left\n"
        )
        clock.pass_half_a_minute()
        said = capsys.readouterr()
        assert "200 of 5,000 (4%), 3.33 a second, 1 min 30 s so far, about 24 min 00 s left" in said.err
        assert said.out == ""
        for _ in range(4):  # a batch that takes two minutes
            clock.pass_half_a_minute()
        assert len(capsys.readouterr().err.splitlines()) == 4
        assert threading.active_count() > 1
    assert capsys.readouterr().err == ""


def test_slow_work_of_unknown_length(clock, capsys):
    with progress_bar("Importing answers", None, now=clock.now) as advance:
        advance(3)
        clock.pass_half_a_minute()
    assert capsys.readouterr().err == "Importing answers: 3, 10 s each, 30 s so far\n"


def test_work_that_is_quick_or_hidden_says_nothing(clock, capsys):
    with progress_bar("Tracing attention", 10, now=clock.now) as advance:
        advance(10)
    before = threading.active_count()
    with progress_bar("Tracing attention", 10, shown=False, now=clock.now) as advance:
        assert threading.active_count() == before
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    with progress_bar("Tracing attention", 10) as advance:
        advance(10)
    assert "10/10" in capsys.readouterr().err
