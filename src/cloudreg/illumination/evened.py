"""A volume whose illumination is taken off as it is read; and the stripes that a grid of tiles leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination.correct import correct_block
from cloudreg.illumination.field import BiasField
from cloudreg.io import Volume, read_resampled
from cloudreg.io.volume import Source
from cloudreg.space import Box, Grid

# Of the usual brightness: what keeps dark places from being divided by nearly nothing.
_FLOOR = 0.01


def evened(volume: Volume, fields: Sequence[BiasField]) -> Volume:
    """Return a volume that reads as if it had been divided by illumination fields.

    Parameters
    ----------
    volume
        A volume of brightness; nothing of it is copied.
    fields
        Over the volume. All its levels are divided by them; integers are rounded and clipped after each.

    Raises
    ------
    InputError
        If the volume holds labels, or has other axes than a field.
    """
    if volume.kind == "labels":
        raise InputError(f"expected a volume of brightness at {volume.path}, got labels: they have no illumination")
    for field in fields:
        field.nodes_along(0, volume.grid)
    return replace(volume, source=_Evened(volume.source, volume.levels, tuple(fields), volume.dtype))


@dataclass(frozen=True)
class _Evened:
    source: Source
    levels: tuple[Grid, ...]
    fields: tuple[BiasField, ...]
    dtype: np.dtype[Any]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box of a level, shape (c, z, y, x)."""
        voxels = np.ascontiguousarray(self.source.read(level, channels, box), self.dtype)
        for field in self.fields:
            along = [field.nodes_along(axis, self.levels[level]) for axis in range(3)]
            nodes = [node[part] for (node, _), part in zip(along, box.slices, strict=True)]
            weights = [weight[part] for (_, weight), part in zip(along, box.slices, strict=True)]
            corrected = np.empty_like(voxels)
            for channel in range(len(voxels)):
                correct_block(voxels[channel], field.gain, nodes, weights, corrected[channel])
            voxels = corrected
        return voxels


def find_stripes(
    volume: Volume, channel: int = 0, *, voxel_um: float = 50.0, blur_um: float = 150.0, engine: Engine | None = None
) -> BiasField:
    """Find the pattern that is the same in all planes, as the borders of tiles are.

    The mean plane over z is compared with itself, blurred; what was not observed counts for neither.

    Parameters
    ----------
    volume, channel
        A volume of brightness; 0 means not observed.
    voxel_um
        At which the pattern is looked for.
    blur_um
        Standard deviation of the blur in the plane.
    engine
        Reads the volume; by default this thread does.

    Returns
    -------
    BiasField
        Of one node along z.
    """
    from scipy.ndimage import gaussian_filter

    values, grid, fraction = read_resampled(volume, voxel_um, channel=channel, engine=engine, weight=True)
    observed = fraction.sum(axis=0, dtype=np.float64)
    mean = values.sum(axis=0, dtype=np.float64) / np.maximum(observed, 1e-6)
    sigma = [blur_um / size for size in grid.voxel_size_um[1:]]
    seen = (observed > 0).astype(np.float64)
    weight = gaussian_filter(seen, sigma, mode="constant")
    smooth = gaussian_filter(mean * seen, sigma, mode="constant") / np.maximum(weight, 1e-6)
    if not seen.any():
        raise InputError(f"expected tissue in channel {channel} of {volume.path}, found zeros only")
    floor = _FLOOR * float(np.median(mean[seen > 0]))
    pattern = np.where(seen > 0, np.log((mean + floor) / (smooth + floor)), 0.0)
    return BiasField(grid.downsampled((grid.shape[0], 1, 1)), pattern[np.newaxis].astype(np.float32))
