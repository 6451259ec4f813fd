"""One map after another: from an atlas through a target to a third space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid, split
from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.transform import Transform

_BLOCK = (32, 64, 64)
_MOST_NODES = 2**28


def compose(first: Transform, second: Transform, *, grid: Grid | None = None) -> Transform:
    """Return the map that does one transform and then another.

    With ``first`` from a to b and ``second`` from b to c the result goes from a ("atlas") to c ("target"), and its
    inverse is that of ``second`` and then that of ``first``.

    Parameters
    ----------
    first, second
        The target of the first is the atlas of the second, in the same micrometres.
    grid
        Nodes for both displacements, in the space of a. By default they reach over the nodes of both transforms, as
        close together as the closest of these.

    Returns
    -------
    Transform
        Exact at the nodes, and trilinear between them: what is lost is what the grid can't hold. Outside the grid the
        displacement at its edge goes on.

    Raises
    ------
    InputError
        If the default grid would have more than 2^28 nodes.
    """
    grid = _common_grid(first, second) if grid is None else grid
    affine = second.affine @ first.affine
    affine[3] = (0, 0, 0, 1)
    there = np.empty((3, *grid.shape), dtype=np.float32)
    back = np.empty_like(there)
    straight = Transform.from_affine(affine, Grid.from_spacing((1, 1, 1), (1.0, 1.0, 1.0)))
    for box in split(grid.shape, _BLOCK):
        index = np.stack(np.meshgrid(*map(np.arange, box.start, box.stop), indexing="ij"), axis=-1)
        nodes = grid.index_to_um(index.reshape(-1, 3))
        end, _ = second.atlas_to_target(first.atlas_to_target(nodes)[0])
        there[:, *box.slices] = _field(straight.target_to_atlas(end)[0] - nodes, box.shape)
        start, _ = first.target_to_atlas(second.target_to_atlas(straight.atlas_to_target(nodes)[0])[0])
        back[:, *box.slices] = _field(start - nodes, box.shape)
    return Transform(affine, DisplacementField(grid, there), DisplacementField(grid, back))


def _field(vectors: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    return np.moveaxis(vectors.reshape(*shape, 3), -1, 0)


def _common_grid(first: Transform, second: Transform) -> Grid:
    """Return axis-aligned nodes over those of both transforms, seen from where the first starts."""
    back = first.inverse_affine
    grids = [first.to_target.grid, first.to_atlas.grid]
    grids += [Grid(g.shape, back @ g.affine) for g in (second.to_target.grid, second.to_atlas.grid)]
    ends = np.concatenate([_corners(g) for g in grids])
    low, high = ends.min(axis=0), ends.max(axis=0)
    # A grid of one node a side is constant, and says nothing about how close nodes must lie.
    spacings = [v for g in grids for v, n in zip(g.voxel_size_um, g.shape, strict=True) if n > 1]
    spacing = min(spacings, default=max(1.0, float((high - low).max())))
    shape = [int(n) for n in np.ceil((high - low) / spacing - 1e-6) + 1]
    if np.prod(shape, dtype=float) > _MOST_NODES:
        raise InputError(
            f"composing the transforms needs {' x '.join(str(n) for n in shape)} nodes {spacing:.3g} um apart: give a "
            "coarser grid"
        )
    return Grid.from_spacing(shape, (spacing,) * 3, low.tolist())


def _corners(grid: Grid) -> NDArray[np.float64]:
    ends = [(0.0, n - 1.0) for n in grid.shape]
    return grid.index_to_um(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
