"""How a volume is cut into parts that are worked on side by side: what ``parastitcher`` and ``paraconverter`` share.

An axis of D voxels is cut into blocks of ``b 2^n`` voxels, so that n halvings of each give whole voxels, and one last
block of what is left. A grid of tiles is cut into rectangles with little border between them. The largest parts are
worked on first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cloudreg.errors import InputError

Name = TypeVar("Name")
Value = TypeVar("Value")
Triples = list[list[int]]


def opt_algo(D: int, w: int, n: int) -> list[int]:
    """Cut ``[0, D - 1]`` into k blocks of ``b 2^n`` and a last one of ``r = D - k b 2^n``.

    Parameters
    ----------
    D
        Length of the axis.
    w
        About what b should be.
    n
        How often blocks will be halved.

    Returns
    -------
    list
        ``[b, r, k, itera]``: of the b within half of w, the nearest that leaves no rest or one of at least half a
        block; else the one whose rest is largest. ``itera`` is how many were looked at.

    Examples
    --------
    >>> opt_algo(1024, 64, 2)
    [64, 0, 4, 1]
    >>> opt_algo(1000, 60, 2)
    [63, 244, 3, 7]
    """
    if D < 1 or w < 1 or n < 0:
        raise InputError(f"expected a length and a block of at least 1 and no negative level, got {D}, {w} and {n}")
    unit = 2**n
    if unit * w > D:
        # All in one block, which may be the rest only.
        b = D // unit
        return [b, D - b * unit, 1, 1] if b else [1, D, 0, 1]
    best = [w, D, 0]
    near = sorted(range(w - w // 2, w + w // 2 + 1), key=lambda b: (abs(b - w), b))
    for itera, b in enumerate(near, start=1):
        k, r = divmod(D, b * unit)
        if k and (r == 0 or 2 * r >= b * unit):
            return [b, r, k, itera]
        if k and r / b > (best[1] / best[0] if best[2] else -1):
            best = [b, r, k]
    return [*best, len(near)]


def prep_array(wb: int, r: int, k: int) -> list[int]:
    """Return the sizes of k blocks of ``wb`` and of the rest, if there is one.

    Examples
    --------
    >>> prep_array(4, 3, 2)
    [4, 4, 3]
    """
    return [wb] * k + ([r] if r else [])


def create_sizes(size: int, wb: int, max_res: int, norest: bool = False) -> list[int]:
    """Return the sizes of the blocks along an axis.

    Parameters
    ----------
    size
        Length of the axis.
    wb
        About how long a block should be.
    max_res
        How often blocks will be halved: all but the last are multiples of ``2^max_res``.
    norest
        Leave out the last block where it differs from the others.

    Examples
    --------
    >>> create_sizes(1000, 256, 3)
    [256, 256, 256, 232]
    """
    b, r, k, _ = opt_algo(size, max(1, round(wb / 2**max_res)), max_res)
    sizes = prep_array(b * 2**max_res, r, k)
    return sizes[:-1] if norest and len(sizes) > 1 and sizes[-1] != sizes[0] else sizes


def create_starts_end(array: Sequence[int], start_point: int = 0, open_dx: bool = True) -> tuple[list[int], list[int]]:
    """Return where blocks of these sizes start and end.

    The end is the start of the next block, or with ``open_dx=False`` the last index of the block itself.

    Examples
    --------
    >>> create_starts_end([4, 4, 3])
    ([0, 4, 8], [4, 8, 11])
    """
    edges = list(itertools.accumulate(array, initial=start_point))
    return edges[:-1], [end if open_dx else end - 1 for end in edges[1:]]


def sort_list(len_1: int, len_2: int, len_3: int) -> Triples:
    """Return all triples of indexes along three directions, the last index changing fastest.

    Examples
    --------
    >>> sort_list(1, 2, 2)
    [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    """
    return [[i, j, k] for i in range(len_1) for j in range(len_2) for k in range(len_3)]


def sort_start_end(
    start_1: Sequence[int],
    start_2: Sequence[int],
    start_3: Sequence[int],
    end_1: Sequence[int],
    end_2: Sequence[int],
    end_3: Sequence[int],
    size_1: Sequence[int],
    size_2: Sequence[int],
    size_3: Sequence[int],
) -> tuple[Triples, Triples, Triples, dict[int, list[int]]]:
    """Return the blocks of a volume.

    Parameters
    ----------
    start_1, start_2, start_3, end_1, end_2, end_3, size_1, size_2, size_3
        Of the blocks along depth, height and width.

    Returns
    -------
    order
        ``[depth, height, width]`` indexes of each block.
    start_list, end_list
        ``[width, height, depth]`` of each block.
    len_arr
        ``{index: [width, height, depth]}``, its size.
    """
    order = sort_list(len(start_1), len(start_2), len(start_3))
    starts = [[start_3[k], start_2[j], start_1[i]] for i, j, k in order]
    ends = [[end_3[k], end_2[j], end_1[i]] for i, j, k in order]
    sizes = {n: [size_3[k], size_2[j], size_1[i]] for n, (i, j, k) in enumerate(order)}
    return order, starts, ends, sizes


def blocks(sizes: Sequence[Sequence[int]]) -> tuple[Triples, Triples, Triples, dict[int, list[int]]]:
    """Return the blocks of a volume as `sort_start_end` does, from their sizes along depth, height and width."""
    (s1, e1), (s2, e2), (s3, e3) = (create_starts_end(axis) for axis in sizes)
    return sort_start_end(s1, s2, s3, e1, e2, e3, *sizes)


def score_function(params: Mapping[Name, Sequence[int]]) -> dict[Name, float]:
    """Return ``100 voxels / most voxels`` for each ``[nx, ny, nz]``.

    Examples
    --------
    >>> score_function({"a": [2, 2, 2], "b": [2, 2, 1]})
    {'a': 100.0, 'b': 50.0}
    """
    voxels = {name: math.prod(size) for name, size in params.items()}
    most = max(voxels.values(), default=1)
    return {name: 100 * count / most for name, count in voxels.items()}


def sort_elaborations(scores: Mapping[Name, float]) -> list[Name]:
    """Return names, those of the highest score first; equals keep their order."""
    return sorted(scores, key=lambda name: -scores[name])


def sort_work(params: Mapping[Name, Value], priority: Sequence[Name]) -> dict[Name, Value]:
    """Return a dictionary in the order of its names in ``priority``."""
    return {name: params[name] for name in priority}


def pop_left(dictionary: dict[Any, Value]) -> Value:
    """Take the first element out of a dictionary, and return its value."""
    return dictionary.pop(next(iter(dictionary)))


def partition(m: int, n: int, N: int) -> tuple[int, int]:
    """Cut a block of m x n into at least N parts, with the least border between them.

    Returns
    -------
    p_m, p_n
        Parts along m (V) and n (H); of those with equal borders, the fewest. ``(m, n)`` if there can't be N.

    Examples
    --------
    >>> partition(4, 8, 6)
    (2, 3)
    """
    m, n, N = int(m), int(n), math.ceil(N)
    if m * n < N:
        return m, n
    choices = [(p, max(1, math.ceil(N / p))) for p in range(1, m + 1)]
    return min(
        ((p, q) for p, q in choices if q <= n),
        key=lambda parts: ((parts[0] - 1) * n + (parts[1] - 1) * m, parts[0] * parts[1]),
    )


def do_additional_partition(nprocs: float, nrows: float, ncols: float, n_ss: float) -> tuple[int, int]:
    """Return into how many parts a grid of tiles is cut along V and H so that its layers give enough work.

    Parameters
    ----------
    nprocs
        Processes.
    nrows, ncols
        Of the grid.
    n_ss
        Layers along depth. Twice as many parts as processes are enough.

    Examples
    --------
    >>> do_additional_partition(4.0, 6.0, 5.0, 2.0)
    (2, 2)
    >>> do_additional_partition(4.0, 6.0, 5.0, 8.0)
    (1, 1)
    """
    wanted = math.ceil(2 * nprocs / n_ss)
    return partition(max(1, int(nrows)), max(1, int(ncols)), wanted) if wanted > 1 else (1, 1)
