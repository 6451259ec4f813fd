"""Progress bars with rate and time left on a terminal, plain lines in a log, silence in a library."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LOG_EVERY_S = 15.0
_WORTH_A_LINE_S = 1.0
_console: Console | None = None


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} {task.fields['unit']}/s" if task.speed else "")


def enable() -> Console:
    """Show progress on standard error from now on; called by the command line only."""
    global _console
    _console = Console(file=sys.stderr, soft_wrap=True)
    # What it finds wrong with a file, we say ourselves.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return _console


def say(text: str) -> None:
    """Print one line to the person who runs the program, if progress is shown."""
    if _console is not None:
        _console.print(text, highlight=False, markup=False)


@contextmanager
def track(label: str, total: float, unit: str = "blocks", *, done: float = 0.0) -> Iterator[Callable[[float], None]]:
    """Follow ``total`` steps of a stage, of which ``done`` were done before: these don't count for the rate.

    Yields
    ------
    callable
        ``advance(n)``, to be called after ``n`` more steps.
    """
    if _console is None:
        yield lambda n: None
    elif _console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_console,
        ) as bars:
            task = bars.add_task(label, total=total, unit=unit)
            bars.update(task, completed=done)
            yield lambda n: bars.update(task, advance=n)
    else:
        yield from _plain_lines(label, total, unit, done)


def _plain_lines(label: str, total: float, unit: str, before: float) -> Iterator[Callable[[float], None]]:
    start = last = time.monotonic()
    done = before

    def advance(n: float) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S and done < total:
            rate = (done - before) / (now - start)
            left = (total - done) / rate if rate > 0 else float("inf")
            say(f"{label}: {done:.0f}/{total:.0f} {unit}, {rate:.3g} {unit}/s, {left:.0f} s left")
            last = now

    yield advance
    took = time.monotonic() - start
    if took >= _WORTH_A_LINE_S:
        say(f"{label}: {done:.0f}/{total:.0f} {unit} in {took:.1f} s, {(done - before) / took:.3g} {unit}/s")
