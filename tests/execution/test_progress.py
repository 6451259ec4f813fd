"""Progress: silent in a library, plain lines in a log."""

import io
import re
import time

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
        advance(6)
    assert text.getvalue().splitlines() == [
        "Fusing: 4/10 blocks, 0.2 blocks/s, 30 s left",
        "Fusing: 10/10 blocks in 20.0 s, 0.5 blocks/s",
    ]


def test_work_that_is_gone_on_with_tells_the_rate_of_today(monkeypatch):
    text, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "_console", Console(file=text, width=120))
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.track("Levels 0 to 3", 1000, "MB", done=800) as advance:
        clock[0] = 20.0
        advance(50)
        advance(150)
    assert text.getvalue().splitlines() == [
        "Levels 0 to 3: 850/1000 MB, 2.5 MB/s, 60 s left",
        "Levels 0 to 3: 1000/1000 MB in 20.0 s, 10 MB/s",
    ]


def test_a_terminal_shows_the_unit_of_the_rate(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=text, force_terminal=True, width=160))
    with progress.track("Levels", 300, "MB") as advance:
        for _ in range(3):
            time.sleep(0.02)
            advance(100)
    assert re.search(r"300/300 .* MB/s", re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()))


def test_a_log_is_not_filled_with_what_takes_no_time(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=text, width=120))
    with progress.track("Level 3", 1) as advance:
        advance(1)
    assert text.getvalue() == ""
