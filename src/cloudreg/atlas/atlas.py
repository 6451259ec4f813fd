"""An atlas: a template image, labels in the same physical space, and names for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.atlas.ids import as_ids
from cloudreg.atlas.ontology import Regions
from cloudreg.io import Volume
from cloudreg.space import Box, Grid, split
from cloudreg.space.orientation import left_right_axis

_SLAB_VOXELS = 2**24


@dataclass(frozen=True, eq=False)
class Atlas:
    """Template, labels and names.

    Parameters
    ----------
    name
        BrainGlobe name, or that of the folder or file.
    template
        The image that is registered to a target.
    labels
        Region ids, on the template's grid or another one in the same physical space; None where there are none.
    orientation
        Letters of the physical axes z, y, x: the side where coordinates start.
    regions
        What the ids are.
    source
        Arguments of `load_atlas` that open it again, from any working folder.
    """

    name: str
    template: Volume
    labels: Volume | None
    orientation: str
    regions: Regions
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolution_um(self) -> tuple[float, float, float]:
        """Voxel size of the template, z y x."""
        return self.template.grid.voxel_size_um

    def right_of_midplane(self) -> NDArray[np.float64]:
        """Return the midplane as (4,) numbers p: a point is in the right half where ``p[:3] @ point_um + p[3] > 0``.

        The midplane is the middle of the template's extent along the left-right axis.
        """
        axis, sign = left_right_axis(self.orientation)
        low, high = self.template.grid.bounds_um()
        plane = np.zeros(4)
        # With sign +1 coordinates start at the right, so right is where they are small.
        plane[axis] = -sign
        plane[3] = sign * (low[axis] + high[axis]) / 2
        return plane

    def side(self, points_um: ArrayLike) -> NDArray[np.str_]:
        """Return ``"left"`` or ``"right"`` for points (n, 3) in atlas micrometres; the midplane itself is left."""
        plane = self.right_of_midplane()
        points = np.asarray(points_um, dtype=np.float64).reshape(-1, 3)
        return np.where(points @ plane[:3] + plane[3] > 0, "right", "left")

    def labels_at(self, points_um: ArrayLike) -> NDArray[np.uint64]:
        """Return the ids at points (n, 3) in atlas micrometres; 0 outside the labels and for NaN.

        Reads the labels in slabs of a few planes, and only those that hold points.
        """
        points = np.asarray(points_um, dtype=np.float64).reshape(-1, 3)
        found = np.zeros(len(points), dtype=np.uint64)
        if self.labels is None:
            return found
        grid = self.labels.grid
        position = grid.um_to_index(points) + 0.5
        inside = ((position >= 0) & (position < np.asarray(grid.shape))).all(axis=1)
        index = np.full(points.shape, -1, dtype=np.int64)
        index[inside] = np.floor(position[inside]).astype(np.int64)
        for box in slabs(grid):
            here = np.flatnonzero((index[:, 0] >= box.start[0]) & (index[:, 0] < box.stop[0]))
            if here.size:
                slab = as_ids(self.labels.read(box))
                z, y, x = index[here].T
                found[here] = slab[z - box.start[0], y, x]
        return found


def slabs(grid: Grid) -> list[Box]:
    """Return boxes of whole planes, of at most 16 million voxels where a plane allows it."""
    _, ny, nx = grid.shape
    return split(grid.shape, (max(1, _SLAB_VOXELS // (ny * nx)), ny, nx))
