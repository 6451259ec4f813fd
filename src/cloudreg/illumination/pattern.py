"""The pattern that all planes have in common, as a grid of tiles leaves it; and how a field is taken off an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.illumination.correct import correct_block
from cloudreg.illumination.field import BiasField
from cloudreg.space import Grid

# Of the usual brightness: what keeps dark places from being divided by nearly nothing.
_FLOOR = 0.01


def common_pattern(
    values: NDArray[np.float32], observed: NDArray[np.float32], grid: Grid, *, axis: int, blur_um: float
) -> BiasField:
    """Find the pattern that is the same in all planes across an axis.

    Parameters
    ----------
    values
        (z, y, x): means of blocks of voxels, those that were not observed included as 0.
    observed
        (z, y, x), 0 to 1: fraction of each block that was observed. Some must have been.
    grid
        Of both.
    axis
        Across which the planes are stacked.
    blur_um
        Standard deviation of the blur in the plane: the mean plane is compared with itself, blurred.

    Returns
    -------
    BiasField
        Of one node along ``axis``. The blur is centred and ends at the edges, whatever the shape.
    """
    from scipy.ndimage import gaussian_filter

    total = observed.sum(axis=axis, dtype=np.float64)
    mean = values.sum(axis=axis, dtype=np.float64) / np.maximum(total, 1e-6)
    sigma = [blur_um / size for k, size in enumerate(grid.voxel_size_um) if k != axis]
    seen = (total > 0).astype(np.float64)
    weight = gaussian_filter(seen, sigma, mode="constant")
    smooth = gaussian_filter(mean * seen, sigma, mode="constant") / np.maximum(weight, 1e-6)
    floor = _FLOOR * float(np.median(mean[seen > 0]))
    pattern = np.where(seen > 0, np.log((mean + floor) / (smooth + floor)), 0.0)
    planes = [n if k == axis else 1 for k, n in enumerate(grid.shape)]
    return BiasField(grid.downsampled(planes), np.expand_dims(pattern, axis).astype(np.float32))


def divided(voxels: NDArray[Any], field: BiasField, grid: Grid) -> NDArray[Any]:
    """Return an array (z, y, x) on ``grid`` divided by a field over it; integers are rounded and clipped."""
    along = [field.nodes_along(axis, grid) for axis in range(3)]
    corrected = np.empty_like(voxels)
    correct_block(voxels, field.gain, [node for node, _ in along], [weight for _, weight in along], corrected)
    return corrected
