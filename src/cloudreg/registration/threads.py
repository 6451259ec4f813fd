"""Work of the main memory's backend, shared among threads; what comes out does not depend on how many there are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLABS = 8
"""Parts of an array that are worked on side by side: more than there are cores, so that none waits long for another."""

_SMALL = 2**17
"""Elements of an array that is done before a thread has begun."""


@cache
def threads() -> ThreadPoolExecutor:
    """Return the threads, one for each core."""
    return ThreadPoolExecutor(os.cpu_count())


def together(do: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
    """Call ``do`` on each of the items, side by side, and return what it returns, in their order.

    Where a call fails, its error is raised when all others have ended: none still writes where the caller goes on.
    """
    calls = [threads().submit(do, *each) for each in zip(*items, strict=True)]
    wait(calls)
    return [call.result() for call in calls]


def slabs(length: int) -> list[slice]:
    """Cut an axis into at most `SLABS` slices of about equal length."""
    bounds = np.linspace(0, length, min(SLABS, length) + 1).astype(int).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def along(
    axis: int, function: Callable[..., NDArray[Any]], array: NDArray[Any], *arguments: Any, **options: Any
) -> NDArray[Any]:
    """Apply ``function(array, *arguments, axis=axis, **options)``, which treats each line along ``axis`` by itself.

    It must return an array like the one that it gets, and let other threads run meanwhile, as SciPy's filters do.
    """
    if array.size < _SMALL:
        return function(array, *arguments, axis=axis, **options)
    across = 1 if axis == 0 else 0
    result = np.empty_like(array)

    def do(part: slice) -> None:
        place = (slice(None), part) if across else (part,)
        result[place] = function(array[place], *arguments, axis=axis, **options)

    together(do, slabs(array.shape[across]))
    return result
