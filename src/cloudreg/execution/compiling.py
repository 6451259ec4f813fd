"""A first run on a machine compiles the hot loops: it says so, and has a second process compile what it needs last.

What is compiled goes into numba's cache on the disk, from where the other process takes it when it comes to it.
"""

from __future__ import annotations

import atexit
import gc
import subprocess
import sys
from functools import cache
from typing import Any

from numba.core import event

from cloudreg.execution.progress import say


class _Announcer(event.Listener):  # type: ignore[misc]
    """Acts at the first compilation, and keeps garbage uncollected during each.

    What comes from the cache is no compilation.
    """

    def __init__(self, ahead: str | None) -> None:
        self.ahead = ahead
        self.said = False
        self.nested = 0

    def on_start(self, event: Any) -> None:
        self.nested += 1
        # A compilation makes millions of small objects that soon go by themselves: looking for those that don't is a
        # seventh of its time.
        gc.disable()
        if not self.said:
            self.said = True
            say("compiling what is computed most: only the first time on this machine")
            if self.ahead is not None:
                _start(self.ahead)

    def on_end(self, event: Any) -> None:
        self.nested -= 1
        if self.nested == 0:
            gc.enable()


@cache
def say_when_compiling(ahead: str | None = None) -> None:
    """Say once, from now on, that numba compiles, and collect no garbage while it does.

    Parameters
    ----------
    ahead
        A module that, run as a program, compiles what this process will need after a while. It is started at the first
        compilation, and stopped with this process.
    """
    event.register("numba:compile", _Announcer(ahead))


def _start(module: str) -> None:
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-m", module], stdin=nothing, stdout=nothing, stderr=nothing)
    atexit.register(process.kill)
