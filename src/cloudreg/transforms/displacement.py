"""A field of displacement vectors on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms.kernels import vectors_at


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """The map ``p -> p + u(p)``, with u trilinear between the nodes of a grid.

    Parameters
    ----------
    grid
        Where the nodes lie.
    vectors
        u at the nodes, float32 (3, z, y, x); components z, y, x in micrometres.

    Raises
    ------
    InputError
        If the shape is not (3, *grid.shape), or a value is not finite.

    Notes
    -----
    A map is stored as displacement so that clamping at the edge extends it by a translation, which is what a brain
    that reaches out of the field needs; clamping the positions themselves would pile it up on the face.
    """

    grid: Grid
    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        vectors = np.ascontiguousarray(self.vectors, dtype=np.float32)
        if vectors.shape != (3, *self.grid.shape):
            raise InputError(
                f"a displacement field on a grid of {self.grid.shape} needs vectors of shape (3, z, y, x), "
                f"got {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise InputError("a displacement field needs finite vectors, got NaN or infinity")
        object.__setattr__(self, "vectors", vectors)

    @staticmethod
    def zero(grid: Grid) -> DisplacementField:
        """Return the identity on a grid's nodes."""
        return DisplacementField(grid, np.zeros((3, *grid.shape), dtype=np.float32))

    def displacement(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Interpolate the displacement.

        Parameters
        ----------
        points_um
            Finite points, (n, 3), z y x.

        Returns
        -------
        ndarray, shape (n, 3)
            Micrometres; outside the grid the value of the nearest point of its hull of nodes.
        """
        index = np.ascontiguousarray(self.grid.um_to_index(points_um))
        out = np.empty_like(index)
        vectors_at(self.vectors, index, out)
        return out

    def contains(self, points_um: ArrayLike) -> NDArray[np.bool_]:
        """Tell which points, (n, 3), lie within the outer faces of the grid's voxels; NaN is nowhere."""
        index = self.grid.um_to_index(points_um)
        return np.asarray(((index >= -0.5) & (index <= np.asarray(self.grid.shape) - 0.5)).all(axis=-1))

    def mapped(self, change: ArrayLike) -> DisplacementField:
        """Return the same field in other coordinates.

        Parameters
        ----------
        change
            4 x 4, C from the present coordinates to the new ones. The result is ``q -> C (p + u(p))`` with
            ``p = C^-1 q``: the nodes are moved and the vectors turned, nothing is interpolated.
        """
        matrix = np.asarray(change, dtype=np.float64)
        vectors = np.einsum("ab,bzyx->azyx", matrix[:3, :3], self.vectors.astype(np.float64))
        return DisplacementField(Grid(self.grid.shape, matrix @ self.grid.affine), vectors.astype(np.float32))

    def extended(self, points_um: ArrayLike) -> DisplacementField:
        """Return the same map on a grid with more nodes, so that points (n, 3) lie well between nodes.

        Other programs take the displacement to be 0 where the nodes end; here the values at the edge go on.
        """
        index = self.grid.um_to_index(points_um).reshape(-1, 3)
        last = np.asarray(self.grid.shape) - 1
        before = np.maximum(0, 1 - np.floor(index.min(axis=0))).astype(int)
        after = np.maximum(0, np.ceil(index.max(axis=0)) + 1 - last).astype(int)
        if not (before.any() or after.any()):
            return self
        widths = [(0, 0), *zip(before.tolist(), after.tolist(), strict=True)]
        return DisplacementField(self.grid.padded(before, after), np.pad(self.vectors, widths, mode="edge"))


def jacobian_determinant(field: DisplacementField) -> NDArray[np.float64]:
    """Return det D(p + u(p)) at every node, (z, y, x): local volume change, negative where space folds.

    Central differences inside, one-sided at the faces.
    """
    shape = field.grid.shape
    by_index = np.zeros((3, 3, *shape))
    for component in range(3):
        for axis in range(3):
            if shape[axis] > 1:
                by_index[component, axis] = np.gradient(field.vectors[component].astype(np.float64), axis=axis)
    # d u / d um = d u / d index @ d index / d um.
    by_um = np.einsum("cazyx,ab->zyxcb", by_index, np.linalg.inv(field.grid.affine[:3, :3]))
    return np.asarray(np.linalg.det(np.eye(3) + by_um))
