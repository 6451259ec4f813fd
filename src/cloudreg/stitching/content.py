"""How much a tile shows at each place, to weigh it against its neighbours.

The deeper light goes into tissue, the more it blurs: of two tiles that saw a place, the one with more contrast around
it saw it better. The contrast is the variance within cells of pixels, smoothed over neighbouring cells, and linear
between the cells' centres. Cells are those of the tile, wherever a block is cut, so that the weights don't depend on
blocks.

References
----------
S. Preibisch, S. Saalfeld, P. Tomancak, "Globally optimal stitching of tiled 3D microscopic image acquisitions",
Bioinformatics 25 (2009); S. Preibisch et al., "Software for bead-based registration of selective plane illumination
microscopy data", Nature Methods 7 (2010), whose weights these follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

CELL = 16
_SMOOTH_CELLS = 2.0
_MARGIN = int(4 * _SMOOTH_CELLS + 0.5) + 1
# Variance that even a blank place has, in grey values squared: none weighs nothing.
_LEAST = 1.0


def content_part(part: slice, length: int) -> slice:
    """Return what must be read along an axis for the weights of a part of it: whole cells, and a margin of them."""
    return slice(max(0, part.start // CELL - _MARGIN) * CELL, min(length, (-(-part.stop // CELL) + _MARGIN) * CELL))


def content_weights(pixels: Array, read: tuple[slice, slice], wanted: tuple[slice, slice]) -> NDArray[np.float32]:
    """Return the weight of each pixel of a part of a tile's plane.

    Parameters
    ----------
    pixels
        (rows, columns), the part that `content_part` asks for.
    read, wanted
        Which rows and columns of the tile that part is, and those whose weights are wanted.
    """
    cells = np.empty([-(-n // CELL) for n in pixels.shape], dtype=np.float64)
    _variances(pixels, CELL, cells)
    smooth = ndimage.gaussian_filter(cells, _SMOOTH_CELLS, mode="nearest", truncate=4.0) + _LEAST
    for axis, (given, part) in enumerate(zip(read, wanted, strict=True)):
        pixel = np.arange(part.start, part.stop)
        # Whole numbers, so that a pixel has the same weight in every block.
        lower = (2 * pixel + 1 - CELL) // (2 * CELL)
        share = (2 * pixel + 1 - CELL - 2 * CELL * lower) / (2 * CELL)
        first, last = given.start // CELL, given.start // CELL + smooth.shape[axis] - 1
        low, high = (np.clip(n, first, last) - first for n in (lower, lower + 1))
        share = share if axis else share[:, None]
        smooth = smooth.take(low, axis) * (1 - share) + smooth.take(high, axis) * share
    return np.asarray(smooth, dtype=np.float32)


@njit(cache=True, nogil=True)
def _variances(pixels: Array, cell: int, out: Array) -> None:
    """Variance of each cell of pixels; cells at the end may be smaller."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            count, total, squares = 0, 0.0, 0.0
            for y in range(i * cell, min((i + 1) * cell, pixels.shape[0])):
                for x in range(j * cell, min((j + 1) * cell, pixels.shape[1])):
                    value = float(pixels[y, x])
                    count += 1
                    total += value
                    squares += value * value
            out[i, j] = max(squares / count - (total / count) ** 2, 0.0)
