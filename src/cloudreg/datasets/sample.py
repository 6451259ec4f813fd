"""The sample under the microscope: the phantom, deformed by a known map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudreg.datasets.diffeomorphism import TrueMap
from cloudreg.datasets.phantom import Phantom
from cloudreg.datasets.splines import SplineField, positions, render
from cloudreg.space import Grid

Result = TypeVar("Result")

_SLAB = 8


@dataclass(frozen=True, eq=False)
class RegionMeans:
    """Size and brightness of every region, left and right.

    Parameters
    ----------
    ids, right
        (n,): id of the region, and whether it is the right half.
    volume_mm3
        (n,) in the sample.
    grey
        (n, channel): mean grey, without shading, uneven light or noise.
    """

    ids: NDArray[np.uint32]
    right: NDArray[np.bool_]
    volume_mm3: NDArray[np.float64]
    grey: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """A deformed phantom; all grids are in its own space, in micrometres.

    Parameters
    ----------
    phantom
        The brain in atlas space.
    map
        Between atlas and sample.
    labels_um
        Voxel size of the atlas's labels.
    """

    phantom: Phantom
    map: TrueMap
    labels_um: float

    @cached_property
    def displacement(self) -> SplineField:
        """phi^-1 - id, for millions of points."""
        return self.map.displacement_to_atlas(self.phantom.grid)

    @cached_property
    def image(self) -> SplineField:
        """The channels in atlas space."""
        return SplineField(*self.phantom.channel_coefficients())

    @cached_property
    def labels_grid(self) -> Grid:
        """Grid of the atlas's labels."""
        return self.phantom.grid_at(self.labels_um)

    @cached_property
    def labels(self) -> NDArray[np.uint32]:
        """The atlas's labels."""
        return self.phantom.labels(self.labels_grid)

    def grey(self, grid: Grid) -> NDArray[np.float32]:
        """Return the channels, (channel, z, y, x), at the voxels of a grid."""
        return render(self.image, self.displacement, self.map.inverse_affine @ grid.affine, grid.shape)

    def labels_on(self, grid: Grid) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Return what the atlas's labels are at the voxels of a grid.

        Returns
        -------
        ids, right
            (z, y, x): nearest label at the true place in the atlas, 0 outside, and whether it is in the right half.
        """
        ids = np.zeros(grid.shape, dtype=np.uint32)
        right = np.zeros(grid.shape, dtype=bool)
        midplane_um = self.phantom.centre_um[2]
        labels = self.labels

        def fill(start: int) -> None:
            part = slice(start, start + _SLAB)
            to_atlas = self.map.inverse_affine @ _from_plane(grid, start)
            place = positions(self.displacement, to_atlas, ids[part].shape)
            index = np.floor(self.labels_grid.um_to_index(place) + 0.5).astype(np.int64)
            inside = ((index >= 0) & (index < labels.shape)).all(axis=-1)
            z, y, x = index[inside].T
            ids[part][inside] = labels[z, y, x]
            # x runs from right to left in the atlas.
            right[part] = place[..., 2] < midplane_um

        _for_slabs(fill, grid)
        return ids, right

    def measure_regions(
        self, grid: Grid, ids: NDArray[np.uint32], right: NDArray[np.bool_], counted: NDArray[np.bool_]
    ) -> RegionMeans:
        """Measure the ideal image on a grid.

        Parameters
        ----------
        grid
            Where to look.
        ids, right
            As `labels_on` returns them.
        counted
            (z, y, x): what to look at.
        """
        keys = 2 * ids.astype(np.int64) + right
        keys[~counted | (ids == 0)] = 0
        found, key = np.unique(keys, return_inverse=True)
        key = key.reshape(grid.shape)

        def sums(start: int) -> NDArray[np.float64]:
            part = key[start : start + _SLAB]
            grey = self.grey(Grid(part.shape, _from_plane(grid, start)))
            weights = [*grey, np.ones_like(grey[0])]
            return np.stack(
                [np.bincount(part.ravel(), weights=w.ravel(), minlength=len(found)) for w in weights], axis=1
            )

        total = np.sum(_for_slabs(sums, grid), axis=0)[found > 0]
        found = found[found > 0]
        return RegionMeans(
            ids=(found // 2).astype(np.uint32),
            right=(found % 2).astype(bool),
            volume_mm3=total[:, -1] * grid.voxel_volume_um3 * 1e-9,
            grey=total[:, :-1] / total[:, -1:],
        )


def thinned(grid: Grid, stride: Sequence[int]) -> Grid:
    """Return every ``stride``-th voxel of a grid, from the first on."""
    z, y, x = (-(-n // s) for n, s in zip(grid.shape, stride, strict=True))
    return Grid((z, y, x), grid.affine @ np.diag([*stride, 1]))


def _from_plane(grid: Grid, start: int) -> NDArray[np.float64]:
    """Affine of the grid whose first plane is plane ``start``."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.index_to_um((start, 0, 0))
    return affine


def _for_slabs(task: Callable[[int], Result], grid: Grid) -> list[Result]:
    """Call ``task`` with the first plane of every slab; the kernels let two threads run at once."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(task, range(0, grid.shape[0], _SLAB)))
