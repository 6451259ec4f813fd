"""Planes drawn from an acquisition, small enough to keep many of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.tiles import Acquisition


@dataclass(frozen=True)
class Samples:
    """Planes of all tiles at the same depths, as means over square blocks of pixels.

    Parameters
    ----------
    blocks
        (tiles, depths, rows, columns), float32.
    present
        (tiles, depths), False where a plane was lost; its blocks are zero.
    block_px
        Side of a block.
    """

    blocks: NDArray[np.float32]
    present: NDArray[np.bool_]
    block_px: int


@dataclass(frozen=True)
class _Place:
    tile: int
    plane: int


def read_samples(acquisition: Acquisition, channel: int, *, samples: int, working_side: int, engine: Engine) -> Samples:
    """Draw planes evenly over the depth, the same from each tile, and read them as block means.

    Parameters
    ----------
    acquisition, channel
        What to draw from.
    samples
        About how many planes in all; at least one a tile.
    working_side
        Number of blocks along the longer side of a tile.
    engine
        Reads the planes; a task holds one of them.

    Raises
    ------
    InputError
        If none of the planes drawn exists.
    """
    depth, height, width = acquisition.tile_shape
    block_px = -(-max(height, width) // working_side)
    depths = min(depth, max(1, samples // len(acquisition.tiles)))
    drawn = [int((i + 0.5) * depth / depths) for i in range(depths)]
    present = np.array(
        [
            [any(start <= plane < stop for start, stop in acquisition.planes(tile, channel)) for plane in drawn]
            for tile in acquisition.tiles
        ]
    )
    places = [_Place(int(t), drawn[d]) for t, d in np.argwhere(present)]
    if not places:
        raise InputError(f"{acquisition.path} has no plane of channel {channel}: there is no flat field to find")
    task = partial(_read_blocks, acquisition, channel, block_px)
    planes = engine.run(task, places, label=f"flat field of channel {channel}", unit="planes")
    # A plane of zeros can't be read, or was lost: no camera sees nothing at all.
    present[present] = [plane is not None and bool(plane.any()) for plane in planes]
    if not present.any():
        raise InputError(f"{acquisition.path} has no plane of channel {channel} that can be read")
    blocks = np.zeros((*present.shape, -(-height // block_px), -(-width // block_px)), np.float32)
    blocks[present] = np.stack([plane for plane in planes if plane is not None and plane.any()])
    return Samples(blocks, present, block_px)


def block_means(plane: NDArray[np.generic], block_px: int) -> NDArray[np.float32]:
    """Return the means of a plane's blocks of ``block_px`` x ``block_px`` pixels; those at the end may be smaller."""
    means = np.empty((-(-plane.shape[0] // block_px), -(-plane.shape[1] // block_px)), np.float32)
    _fill_means(plane, block_px, means)
    return means


@njit(cache=True, nogil=True)
def _fill_means(plane: NDArray[np.generic], block_px: int, means: NDArray[np.float32]) -> None:
    """Average block after block, in float64."""
    height, width = plane.shape
    for i in range(means.shape[0]):
        y1 = min((i + 1) * block_px, height)
        for j in range(means.shape[1]):
            x1 = min((j + 1) * block_px, width)
            total = 0.0
            for y in range(i * block_px, y1):
                for x in range(j * block_px, x1):
                    total += np.float64(plane[y, x])
            means[i, j] = total / ((y1 - i * block_px) * (x1 - j * block_px))


def block_centres(length: int, block_px: int) -> NDArray[np.float64]:
    """Return where the centres of the blocks along an axis lie, in pixels from the first pixel's centre."""
    starts = np.arange(0, length, block_px)
    stops = np.minimum(starts + block_px, length)
    return (starts + stops - 1) / 2


def _read_blocks(acquisition: Acquisition, channel: int, block_px: int, place: _Place) -> NDArray[np.float32]:
    tile = acquisition.tiles[place.tile]
    return block_means(acquisition.read(tile, channel, place.plane, place.plane + 1)[0], block_px)
