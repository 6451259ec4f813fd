"""Planes that could not be read: taken for lost, remembered, and named at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cloudreg.execution.progress import say

_NAMED = 20

_lock = threading.Lock()
_found: dict[str, str] = {}


def note_damage(place: str, reason: str) -> None:
    """Remember a plane of this process that can't be read, and say so when it is met for the first time."""
    with _lock:
        if place in _found:
            return
        _found[place] = reason
    say(f"WARNING {reason}; taken for a lost plane")


def damaged_planes() -> tuple[tuple[str, str], ...]:
    """Return the places of all planes that this process could not read, with the reasons, sorted."""
    with _lock:
        return tuple(sorted(_found.items()))


def remember(planes: Iterable[tuple[str, str]]) -> None:
    """Take over what another process could not read."""
    with _lock:
        _found.update(planes)


def forget_damage() -> None:
    """Begin anew."""
    with _lock:
        _found.clear()


def say_damage() -> None:
    """Name, at the end, the planes that could not be read."""
    planes = damaged_planes()
    if planes:
        names = ", ".join(place for place, _ in planes[:_NAMED])
        more = f" and {len(planes) - _NAMED} more" if len(planes) > _NAMED else ""
        say(f"WARNING {len(planes)} plane(s) could not be read and were taken for lost: {names}{more}")
