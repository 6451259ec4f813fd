"""Progress: silent in a library, plain lines in a log."""

import io

import pytest
from rich.console import Console

from cloudreg.execution import progress


def test_libraries_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_console", None)
    with progress.track("work", 3) as advance:
        advance(3)
    progress.say("something")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_end_is_told(monkeypatch, terminal):
    text = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=text, force_terminal=terminal, width=120))
    now = iter([0.0, *(float(n) for n in range(2, 100))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.track("Fusing", 3, "tiles") as advance:
        for _ in range(3):
            advance(1)
    assert "Fusing" in text.getvalue() and "3/3" in text.getvalue() and "tiles" in text.getvalue()


def test_long_work_tells_rate_and_time_left(monkeypatch):
    text, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "_console", Console(file=text, width=120))
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.track("Fusing", 10) as advance:
        clock[0] = 20.0
        advance(4)
    assert "Fusing: 4/10 blocks, 0.2/s, 30 s left" in text.getvalue()


def test_a_log_is_not_filled_with_what_takes_no_time(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=text, width=120))
    with progress.track("Level 3", 1) as advance:
        advance(1)
    assert text.getvalue() == ""
