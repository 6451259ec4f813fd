"""What the solver sees at one resolution: target, weights and atlas, sampled where they truly lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.sampling import SPLINE_MARGIN, spline_coefficients
from cloudreg.space import Grid


@dataclass(frozen=True)
class Image:
    """A normalised image: background near 0, bright tissue near 1.

    Parameters
    ----------
    values
        (z, y, x) float32.
    weight
        (z, y, x) float32, 0 to 1: how much of each voxel was observed.
    grid
        Where the voxels lie.
    """

    values: NDArray[np.float32]
    weight: NDArray[np.float32]
    grid: Grid

    def reduced(self, voxel_um: float) -> Image:
        """Return block means over whole numbers of voxels, as near as can be to ``voxel_um``; partial blocks stay.

        The mean is over what was observed; where nothing was, it is 0 and its weight too.
        """
        factors = [max(1, round(voxel_um / v)) for v in self.grid.voxel_size_um]
        if factors == [1, 1, 1]:
            return self
        weight = _block_sum(self.weight, factors)
        total = _block_sum(self.values * self.weight, factors)
        values = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        voxels = [
            _block_sum(np.ones(n, dtype=np.float32), [f]) for n, f in zip(self.weight.shape, factors, strict=True)
        ]
        full = voxels[0][:, None, None] * voxels[1][:, None] * voxels[2]
        return Image(values, weight / full, self.grid.downsampled(factors))

    def without(self, lost: Sequence[NDArray[np.bool_]]) -> Image:
        """Return the image with no weight where any of the (z, y, x) masks is true."""
        return replace(self, weight=np.where(np.logical_or.reduce(lost), np.float32(0), self.weight))

    @cached_property
    def foreground(self) -> NDArray[np.bool_]:
        """Where there is tissue: above Otsu's threshold of the smoothed image."""
        from scipy.ndimage import gaussian_filter

        smooth = gaussian_filter(self.values, 1.0)
        return np.asarray(smooth > otsu_threshold(smooth[self.weight > 0]))


@dataclass(frozen=True)
class Level:
    """Everything that the kernels need of one resolution, but the unknowns.

    Parameters
    ----------
    voxel_um
        Nominal voxel size.
    target
        Target at this resolution.
    active
        Flat indices of the target voxels that are visited.
    atlas
        Spline coefficients.
    outside
        Atlas value outside its grid.
    atlas_grid
        Grid of the *padded* atlas.
    """

    voxel_um: float
    target: Image
    active: NDArray[np.int64]
    atlas: NDArray[np.float32]
    outside: np.float32
    atlas_grid: Grid

    def near_the_brain(self, to_atlas: NDArray[np.float64], margin_um: float) -> Level:
        """Return the level with only those target voxels active that may take part.

        Parameters
        ----------
        to_atlas
            4 x 4, target um to atlas um, good to within ``margin_um``.
        margin_um
            Voxels farther than this from the atlas's brain and from the target's tissue only tell that background is
            background, and are left out.
        """
        from scipy.ndimage import affine_transform

        grid = self.target.grid
        step = np.linalg.inv(self.atlas_grid.affine) @ to_atlas @ grid.affine
        brain = affine_transform(self.atlas, step[:3, :3], step[:3, 3], grid.shape, order=1, mode="constant") > 0.1
        return self._near(brain | self.target.foreground, margin_um)

    def near_the_tissue(self, margin_um: float) -> Level:
        """Return the level with only those voxels active that lie within ``margin_um`` of the target's tissue."""
        return self._near(self.target.foreground, margin_um)

    def without(self, lost: NDArray[np.bool_]) -> Level:
        """Return the level with the voxels of a (z, y, x) mask left out."""
        return replace(self, active=self.active[~lost.ravel()[self.active]])

    def _near(self, wanted: NDArray[np.bool_], margin_um: float) -> Level:
        from scipy.ndimage import uniform_filter

        grid = self.target.grid
        size = [2 * int(np.ceil(margin_um / v)) + 1 for v in grid.voxel_size_um]
        near = uniform_filter(wanted.astype(np.float32), size, mode="constant") > 0.5 / np.prod(size)
        return replace(self, active=np.flatnonzero(near & (self.target.weight > 0)))


def make_level(target: Image, atlas: Image, voxel_um: float) -> Level:
    """Reduce both images to one resolution."""
    small = target.reduced(voxel_um)
    template = atlas.reduced(voxel_um)
    outside = np.float32(0)
    margin = [SPLINE_MARGIN] * 3
    return Level(
        voxel_um,
        small,
        np.flatnonzero(small.weight > 0),
        spline_coefficients(template.values, float(outside)),
        outside,
        template.grid.padded(margin, margin),
    )


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that best separates the values into two classes (Otsu, IEEE TSMC 9:62-66, 1979)."""
    low, high = np.quantile(values, [0.001, 0.999])
    if not high > low:
        return float(high)
    counts, edges = np.histogram(values, bins=256, range=(float(low), float(high)))
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = below[-1] + counts[-1] - below
    mass = np.cumsum(counts * centres)
    mean_below = mass[:-1] / np.maximum(below, 1)
    mean_above = (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    return float(edges[1 + int(np.argmax(below * above * (mean_above - mean_below) ** 2))])


def _block_sum(array: NDArray[np.float32], factors: Sequence[int]) -> NDArray[np.float32]:
    """Sum blocks of ``factors`` voxels; those at the far ends may be smaller."""
    missing = [(0, -n % factor) for n, factor in zip(array.shape, factors, strict=True)]
    array = np.pad(array, missing) if np.any(missing) else array
    for axis, factor in enumerate(factors):
        before = (slice(None),) * axis
        array = reduce(add, (array[(*before, slice(first, None, factor))] for first in range(factor)))
    return array
