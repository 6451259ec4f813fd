"""A volume with voxels as long along all axes as along the longest."""

from __future__ import annotations

import numpy as np

from cloudreg.execution import Engine
from cloudreg.io import Volume
from cloudreg.transforms import Transform, apply_image


def write_isotropic(volume: Volume, out: str, engine: Engine) -> Volume:
    """Write a volume anew; images are interpolated linearly, labels are those of the nearest voxel."""
    grid = volume.grid.resampled([max(volume.grid.voxel_size_um)] * 3)
    same = Transform.from_affine(np.eye(4), grid)
    labels = volume.kind == "labels"
    return apply_image(
        same, volume, grid, out, to="target", labels=labels, engine=engine, orientation=volume.orientation
    )
