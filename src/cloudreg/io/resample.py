"""A volume at the resolution that a computation wants, by averaging whole voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from cloudreg.execution import Engine
from cloudreg.io.blocks import blocks_within, run_blocks
from cloudreg.io.downsample import block_means
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

Float = NDArray[np.float32]


@overload
def read_resampled(
    volume: Volume, voxel_um: float, *, channel: int = ..., engine: Engine | None = ..., weight: Literal[False] = ...
) -> tuple[Float, Grid]: ...


@overload
def read_resampled(
    volume: Volume, voxel_um: float, *, channel: int = ..., engine: Engine | None = ..., weight: Literal[True]
) -> tuple[Float, Grid, Float]: ...


def read_resampled(
    volume: Volume, voxel_um: float, *, channel: int = 0, engine: Engine | None = None, weight: bool = False
) -> tuple[Float, Grid] | tuple[Float, Grid, Float]:
    """Read a volume with voxels of about ``voxel_um``.

    The coarsest level that is fine enough is averaged over blocks of ``round(voxel_um / spacing)`` voxels along each
    axis (at least 1), so the grid returned is exact and nothing is interpolated.

    Parameters
    ----------
    volume, channel
        What to read.
    voxel_um
        Voxel size wanted, micrometres. The result's lies within a factor 1.5 of it, but never finer than the file's.
    engine
        Reads blocks side by side, each within its share of the memory.
    weight
        Return the fraction of voxels that are not 0, too. The voxels are those of the level that is read.

    Returns
    -------
    array : ndarray, float32, shape (z, y, x)
    grid : Grid
        Where its voxels lie.
    weight : ndarray, float32, shape (z, y, x), range 0 to 1
        Only with ``weight=True``.
    """
    level = volume.level_near(voxel_um)
    native = volume.levels[level]
    z, y, x = (max(1, int(np.floor(voxel_um / s + 0.5))) for s in native.voxel_size_um)
    grid = native.downsampled((z, y, x))
    unit = [max(1, round(c / f)) for c, f in zip(volume.chunk, (z, y, x), strict=True)]
    voxel_bytes = z * y * x * (volume.dtype.itemsize + (1 if weight else 0)) + 8
    boxes = blocks_within(grid.shape, unit, voxel_bytes, None if engine is None else engine.memory_per_block_bytes)
    task = _Average(volume, level, channel, (z, y, x), weight)
    array = np.empty(grid.shape, np.float32)
    fraction = np.empty(grid.shape if weight else (0, 0, 0), np.float32)
    for box, (means, filled) in zip(boxes, run_blocks(task, boxes, label="Reading", engine=engine), strict=True):
        array[box.slices] = means
        if weight:
            fraction[box.slices] = filled
    return (array, grid, fraction) if weight else (array, grid)


@dataclass(frozen=True)
class _Average:
    """Reads and averages one block of the result."""

    volume: Volume
    level: int
    channel: int
    factors: tuple[int, int, int]
    weight: bool

    def __call__(self, box: Box) -> tuple[Float, Any]:
        whole = Box.whole(self.volume.levels[self.level].shape)
        start = [a * f for a, f in zip(box.start, self.factors, strict=True)]
        stop = [b * f for b, f in zip(box.stop, self.factors, strict=True)]
        native = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).intersection(whole)
        voxels = self.volume.read(native, level=self.level, channel=self.channel)
        return block_means(voxels, self.factors), block_means(voxels != 0, self.factors) if self.weight else None
