"""A word to the person who waits while the hot loops are compiled, which happens once on a machine."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core import event

from cloudreg.execution.progress import say


class _Announcer(event.Listener):  # type: ignore[misc]
    """Says it at the first compilation; what comes from the cache is no compilation."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            self.said = True
            say("compiling what is computed most: only the first time on this machine")

    def on_end(self, event: Any) -> None:
        pass


@cache
def say_when_compiling() -> None:
    """Say once, from now on, that numba compiles."""
    event.register("numba:compile", _Announcer())
