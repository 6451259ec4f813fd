"""Which resolution levels a volume gets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Grid

_SMALL = 64


def next_factors(grid: Grid) -> tuple[int, int, int]:
    """Return by how much each axis shrinks to the next level: 1 or 2, z y x.

    The finest axes are halved, as many as give the most cubic voxel, and the fewest where that is equal: an axis much
    coarser than the others waits for them. An axis of one voxel is not looked at.
    """
    spacing = np.asarray(grid.voxel_size_um)
    long = np.asarray(grid.shape) > 1

    def anisotropy(steps: NDArray[np.int64]) -> float:
        coarse = (spacing * steps)[long]
        return round(float(coarse.max() / coarse.min()), 6)

    choices = [np.where(long & (spacing <= s * (1 + 1e-6)), 2, 1) for s in sorted(spacing[long])]
    z, y, x = min(choices, key=anisotropy).tolist() if choices else (1, 1, 1)
    return z, y, x


def pyramid_grids(grid: Grid, levels: int | None = None) -> tuple[Grid, ...]:
    """Return the grids of a pyramid, finest first.

    Parameters
    ----------
    grid
        The finest.
    levels
        How many in all; by default until no axis is longer than 64 voxels.
    """
    grids = [grid]
    while (len(grids) < levels) if levels is not None else (max(grids[-1].shape) > _SMALL):
        factors = next_factors(grids[-1])
        if factors == (1, 1, 1):
            break
        grids.append(grids[-1].downsampled(factors))
    return tuple(grids)
