"""Rows and columns of tiles that are known by their positions only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError


def arrange(
    positions_px: NDArray[np.float64], height: int, width: int, names: Sequence[str]
) -> tuple[list[tuple[int, int]], tuple[float, float]]:
    """Return the row and column of each tile, and the overlap of neighbours (vertical, horizontal) as fractions.

    Tiles whose positions along an axis differ by less than a third of a tile are in the same row or column.

    Parameters
    ----------
    positions_px
        (n, 3), z y x.
    height, width
        Of a tile.
    names
        Of the tiles, for messages.

    Raises
    ------
    InputError
        If two tiles are at the same place.
    """
    rows, row_pitch = _lines(positions_px[:, 1], height)
    columns, column_pitch = _lines(positions_px[:, 2], width)
    cells = list(zip(rows, columns, strict=True))
    for index, cell in enumerate(cells):
        if cell in cells[:index]:
            other = names[cells.index(cell)]
            raise InputError(f"{names[index]} and {other} are at the same place of the grid: remove one of them")
    return cells, (_overlap(row_pitch, height), _overlap(column_pitch, width))


def _lines(at: NDArray[np.float64], side: int) -> tuple[list[int], float | None]:
    """Return the number of each tile's line, and the usual distance of lines; empty lines between count."""
    order = np.sort(np.unique(at))
    starts = np.flatnonzero(np.diff(order, prepend=-np.inf) > side / 3)
    centres = np.array([group.mean() for group in np.split(order, starts[1:])])
    if len(centres) == 1:
        return [0] * len(at), None
    pitch = float(np.median(np.diff(centres)))
    # A line that was not scanned at all leaves a gap of several pitches.
    numbers = np.concatenate([[0], np.cumsum(np.maximum(np.rint(np.diff(centres) / pitch), 1))]).astype(int)
    nearest = np.abs(at[:, None] - centres).argmin(axis=1)
    return [int(numbers[k]) for k in nearest], pitch


def _overlap(pitch: float | None, side: int) -> float:
    return 0.1 if pitch is None else float(np.clip(1 - pitch / side, 0.0, 0.95))
