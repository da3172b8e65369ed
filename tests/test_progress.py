import io
import sys

import pytest

import cad.progress
from cad.progress import duration, progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(cad.progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_30_seconds_with_the_time_left(capsys, clock):
    with progress(100, "prior", 20) as bar:
        for seconds in (10, 10, 10, 10):
            clock[0] += seconds
            bar.advance(10)
        # After 30 s, 30 of the 80 new units are done: 50 are left at one a second; the 20 old ones do not count.
        assert capsys.readouterr().err == "prior: 50/100 (50 %), 50 s left\n"
        clock[0] += 90
        bar.advance(40)
    assert capsys.readouterr().err == "prior: 100/100 in 2 min 10 s\n"


def test_nothing_goes_to_stdout_and_an_empty_stage_ends_well(capsys, clock):
    with progress(0, "prior", 0) as bar:
        clock[0] += 31
        bar.advance(0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "prior: 0/0 in 31 s\n"


def test_a_failed_stage_does_not_say_that_it_ended(capsys):
    with pytest.raises(RuntimeError), progress(5, "prior", 0):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress(4, "prior", 1) as bar:
        bar.advance(3)
    assert "4/4" in terminal.getvalue()
    assert "left" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
