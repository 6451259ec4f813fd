"""What the solver sees at one resolution: target, weights and atlas, sampled where they truly lie.

All of it is computed where the images are; see `cloudreg.registration.backend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.registration.backend import Backend, Field, backend_of
from cloudreg.registration.sampling import SPLINE_MARGIN
from cloudreg.space import Grid

_OUTLIERS = 0.015
"""Part of a volume that is less than any brain's: one whose field is four times as wide each way."""

_TWO_CLASSES = 0.75
"""Part of the variance between two classes that are two: of one, it is 0.64 (normal) to 0.75 (uniform)."""

_ENOUGH, _FEW = 2**21, 10_000
"""Voxels that tell a threshold, and so few that they don't if there are more."""


@dataclass(frozen=True)
class Image:
    """A normalised image: background near 0, bright tissue near 1.

    Parameters
    ----------
    values
        (z, y, x) float32, on any device.
    weight
        (z, y, x) float32, 0 to 1: how much of each voxel was observed. On the same device.
    grid
        Where the voxels lie.
    """

    values: Field
    weight: Field
    grid: Grid

    def on(self, backend: Backend) -> Image:
        """Return the same image on a device."""
        if backend is backend_of(self.values):
            return self
        return replace(self, values=backend.send(self.values), weight=backend.send(self.weight))

    def fetched(self) -> Image:
        """Return the same image in the main memory."""
        if isinstance(self.values, np.ndarray):
            return self
        fetch = backend_of(self.values).fetch
        return replace(self, values=fetch(self.values), weight=fetch(self.weight))

    def reduced(self, voxel_um: float) -> Image:
        """Return block means over whole numbers of voxels, as near as can be to ``voxel_um``; partial blocks stay.

        The mean is over what was observed; where nothing was, it is 0 and its weight too.
        """
        factors = [max(1, round(voxel_um / v)) for v in self.grid.voxel_size_um]
        if factors == [1, 1, 1]:
            return self
        backend = backend_of(self.values)
        weight = _block_sum(self.weight, factors)
        total = _block_sum(self.values * self.weight, factors)
        seen = weight > 0
        values = backend.xp.where(seen, total, 0) / backend.xp.where(seen, weight, 1)
        voxels = [
            _block_sum(np.ones(n, dtype=np.float32), [f]) for n, f in zip(self.weight.shape, factors, strict=True)
        ]
        full = voxels[0][:, None, None] * voxels[1][:, None] * voxels[2]
        return Image(values, weight / backend.send(full), self.grid.downsampled(factors))

    def without(self, lost: Sequence[NDArray[np.bool_]]) -> Image:
        """Return the image with no weight where any of the (z, y, x) masks is true."""
        backend = backend_of(self.weight)
        kept = backend.send(~np.logical_or.reduce(lost))
        return replace(self, weight=backend.xp.where(kept, self.weight, 0))

    @cached_property
    def foreground(self) -> Field:
        """Where there is tissue, (z, y, x) bool: above Otsu's threshold of the smoothed image."""
        backend = backend_of(self.values)
        smooth = backend.smoothed(self.values, (1.0,) * 3, "reflect", 4.0)
        return smooth > otsu_threshold(greys_of(smooth, self.weight > 0))

    def slices_with_tissue(self, axis: int) -> NDArray[np.int64]:
        """Return how many voxels of foreground each slice across an axis has.

        Raises
        ------
        InputError
            If there is no foreground at all.
        """
        others = tuple(k for k in range(3) if k != axis)
        backend = backend_of(self.values)
        counts = backend.fetch(backend.xp.sum(self.foreground, axis=others)).astype(np.int64)
        if not counts.any():
            raise InputError(
                "expected an image with tissue brighter than its background; found none: check the channel"
            )
        return counts


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
        Flat indices of the target voxels that are visited, int64, where the target is.
    atlas
        Spline coefficients, likewise.
    outside
        Atlas value outside its grid.
    atlas_grid
        Grid of the *padded* atlas.
    """

    voxel_um: float
    target: Image
    active: Field
    atlas: Field
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
        grid = self.target.grid
        step = np.linalg.inv(self.atlas_grid.affine) @ to_atlas @ grid.affine
        brain = backend_of(self.atlas).resampled(self.atlas, step, grid.shape) > 0.1
        return self._near(brain | self.target.foreground, margin_um)

    def near_the_tissue(self, margin_um: float) -> Level:
        """Return the level with only those voxels active that lie within ``margin_um`` of the target's tissue."""
        return self._near(self.target.foreground, margin_um)

    def without(self, lost: NDArray[np.bool_]) -> Level:
        """Return the level with the voxels of a (z, y, x) mask left out."""
        kept = backend_of(self.active).send(~lost.ravel())
        return replace(self, active=self.active[kept[self.active]])

    def thinned(self, apart_um: float) -> Level:
        """Return the level with only the active voxels of planes, and of rows in them, at most ``apart_um`` apart.

        A quarter of a voxel more is not minded.
        """
        grid = self.target.grid
        planes, rows = (max(1, int(apart_um / v + 0.25)) for v in grid.voxel_size_um[:2])
        if planes == rows == 1:
            return self
        _, ny, nx = grid.shape
        row = self.active // nx
        kept = (row // ny % planes == 0) & (row % ny % rows == 0)
        return replace(self, active=self.active[kept])

    def fetched(self) -> Level:
        """Return the same level in the main memory."""
        if isinstance(self.atlas, np.ndarray):
            return self
        fetch = backend_of(self.atlas).fetch
        return replace(self, target=self.target.fetched(), active=fetch(self.active), atlas=fetch(self.atlas))

    def _near(self, wanted: Field, margin_um: float) -> Level:
        reach = [int(np.ceil(margin_um / v)) for v in self.target.grid.voxel_size_um]
        near = backend_of(wanted).near(wanted, reach)
        return replace(self, active=_flat_indices(near & (self.target.weight > 0)))


def make_level(target: Image, atlas: Image, voxel_um: float) -> Level:
    """Reduce both images to one resolution."""
    small = target.reduced(voxel_um)
    template = atlas.reduced(voxel_um)
    outside = np.float32(0)
    margin = [SPLINE_MARGIN] * 3
    return Level(
        voxel_um,
        small,
        _flat_indices(small.weight > 0),
        backend_of(template.values).spline_coefficients(template.values, float(outside)),
        outside,
        template.grid.padded(margin, margin),
    )


def tissue_between(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the greys between which a brain lies: its background's threshold, and where outliers begin.

    The threshold is Otsu's. Where it leaves fewer voxels than any brain has, these are a saturated blob, a bubble's
    edge or debris, and the rest is asked again.
    """
    highest, count = np.inf, values.size
    threshold, _ = _otsu(values)
    while True:
        few = values >= threshold
        if not 0 < few.sum() < _OUTLIERS * count:
            return threshold, highest
        rest = values[~few]
        lower, told = _otsu(rest)
        # A background without a brain has no two classes either.
        if told < _TWO_CLASSES:
            return threshold, highest
        values, highest, threshold = rest, threshold, lower


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold between background and tissue, see `tissue_between`."""
    return tissue_between(values)[0]


def _otsu(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the threshold that best separates the values into two classes, and the part of the variance between them.

    Otsu, IEEE TSMC 9:62-66, 1979.
    """
    low, high = np.quantile(values, [0.001, 0.999])
    if not high > low:
        return float(high), 0.0
    counts, edges = np.histogram(values, bins=256, range=(float(low), float(high)))
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = below[-1] + counts[-1] - below
    mass = np.cumsum(counts * centres)
    mean_below = mass[:-1] / np.maximum(below, 1)
    mean_above = (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    between = below * above * (mean_above - mean_below) ** 2
    best = int(np.argmax(between))
    total = counts.sum()
    whole = float((counts * centres**2).sum() - mass[-1] ** 2 / total)
    return float(edges[1 + best]), float(between[best] / total / max(whole, 1e-30))


def _block_sum(array: Field, factors: Sequence[int]) -> Field:
    """Sum blocks of ``factors`` voxels; those at the far ends may be smaller."""
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        before = (slice(None),) * axis
        total = backend_of(array).xp.asarray(array[(*before, slice(0, None, factor))], copy=True)
        for first in range(1, factor):
            part = array[(*before, slice(first, None, factor))]
            total[(*before, slice(0, part.shape[axis]))] += part
        array = total
    return array


def _flat_indices(mask: Field) -> Field:
    xp = backend_of(mask).xp
    return xp.nonzero(xp.reshape(mask, (-1,)))[0]


def thinned(array: Field) -> Field:
    """Return a large array's elements at even steps, as many as tell its grey values; a small one's all."""
    flat = array.reshape(-1)
    step = max(1, -(-flat.shape[0] // _ENOUGH))
    # A step that shares a factor with the size of a plane would see only some of its rows or columns.
    while gcd(step, int(np.prod(array.shape[1:]))) > 1:
        step += 1
    return flat[::step]


def greys_of(values: Field, where: Field) -> NDArray[np.float32]:
    """Return the values where a mask is true, in the main memory: of a large image a sample, if that has enough."""
    fetch = backend_of(values).fetch
    sample = fetch(thinned(values))[fetch(thinned(where))]
    return np.asarray(sample if sample.size >= _FEW else fetch(values)[fetch(where)])
