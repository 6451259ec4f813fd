"""One plane of a precomputed volume, at all levels that have as many planes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io import Volume, downsample, open_volume
from cloudreg.io.chunked import ChunkedSource
from cloudreg.scripts._legacy import precomputed
from cloudreg.space import Box


def write_slice(path: str, z: int, plane: NDArray[Any], num_mips: int | None = None) -> None:
    """Write a plane and its smaller copies.

    Parameters
    ----------
    path
        A precomputed volume, which may have been made by other programs.
    z
        Number of the plane.
    plane
        (y, x), of the volume's type.
    num_mips
        How many smaller copies, averages over 2 x 2 pixels of the one before; by default all that the volume has.

    Raises
    ------
    InputError
        If the plane does not fit into the volume, or the volume has no such level of the same planes.
    """
    volume = open_volume(precomputed(path), allow_incomplete=True)
    depth, *shape = volume.grid.shape
    if list(plane.shape) != shape or plane.dtype != volume.dtype or not 0 <= z < depth:
        raise InputError(
            f"expected a plane of {shape} {volume.dtype} within 0 to {depth - 1} for {path}, "
            f"got {list(plane.shape)} {plane.dtype} as plane {z}"
        )
    levels = _flat_levels(volume)
    if num_mips is not None and num_mips >= levels:
        raise InputError(f"expected up to {levels - 1} levels of the same planes in {path}, got {num_mips}")
    source = volume.source
    if not isinstance(source, ChunkedSource):
        raise InputError(f"expected a precomputed volume that can be written to at {path}, got {volume.format}")
    pixels, pending = plane[np.newaxis], []
    for level in range(levels if num_mips is None else num_mips + 1):
        if level:
            pixels = downsample(pixels, (1, 2, 2), volume.kind)
        box = Box.whole(pixels.shape).shifted((z, 0, 0))
        pending.append(source.arrays[level].begin_write(slice(0, 1), box, pixels[np.newaxis]))
    for write in pending:
        write.wait()


def _flat_levels(volume: Volume) -> int:
    """Return how many levels have as many planes as the finest, each with half the pixels of the one before."""
    depth, height, width = volume.grid.shape
    for level, grid in enumerate(volume.levels):
        if grid.shape != (depth, height, width):
            return level
        height, width = -(-height // 2), -(-width // 2)
    return len(volume.levels)
