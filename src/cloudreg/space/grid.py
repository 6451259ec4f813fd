"""The one description of where voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.space.boxes import Box


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxel centres in physical space.

    Parameters
    ----------
    shape
        Number of voxels, z y x.
    affine
        4 x 4, from voxel index (z, y, x) of a voxel *centre* to micrometres (z, y, x).

    Notes
    -----
    Cropping, padding and downsampling change the affine so that every voxel stays where it is; nothing is ever
    re-centred.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) == 0:
            raise InputError(f"a grid needs a finite invertible 4 x 4 affine, got {affine.tolist()}")
        affine.setflags(write=False)
        z, y, x = (int(n) for n in self.shape)
        object.__setattr__(self, "shape", (z, y, x))
        object.__setattr__(self, "affine", affine)

    @staticmethod
    def from_spacing(
        shape: Sequence[int], voxel_size_um: Sequence[float], origin_um: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> Grid:
        """Make a grid whose axes are the physical axes.

        Parameters
        ----------
        shape, voxel_size_um
            z y x.
        origin_um
            Centre of voxel (0, 0, 0), z y x.
        """
        affine = np.eye(4)
        affine[:3, :3] = np.diag([float(v) for v in voxel_size_um])
        affine[:3, 3] = origin_um
        return Grid(_triple(shape), affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and bool(np.allclose(self.affine, other.affine, atol=1e-6))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def voxel_size_um(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each array axis."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def thin_axes(self) -> tuple[str, ...]:
        """Letters of the array axes along which there is one voxel only."""
        return tuple(axis for axis, n in zip("zyx", self.shape, strict=True) if n < 2)

    @property
    def origin_um(self) -> NDArray[np.float64]:
        """Centre of voxel (0, 0, 0)."""
        return np.asarray(self.affine[:3, 3], dtype=np.float64).copy()

    @property
    def size_um(self) -> NDArray[np.float64]:
        """Physical length of each array axis, outer face to outer face."""
        return np.multiply(self.shape, self.voxel_size_um, dtype=np.float64)

    @property
    def voxel_volume_um3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether array axes are the physical axes, growing the same way."""
        linear = self.affine[:3, :3]
        return bool(np.allclose(linear, np.diag(np.diag(linear))) and (np.diag(linear) > 0).all())

    def index_to_um(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map voxel indices, shape (..., 3), to micrometres."""
        return np.asarray(np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def um_to_index(self, um: ArrayLike) -> NDArray[np.float64]:
        """Map micrometres, shape (..., 3), to (fractional) voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(np.asarray(um, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3])

    def corner_um(self) -> NDArray[np.float64]:
        """Outer corner of voxel (0, 0, 0)."""
        return self.index_to_um((-0.5, -0.5, -0.5))

    def bounds_um(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest physical coordinate of the voxels' outer faces, per physical axis."""
        ends = np.array([(-0.5, n - 0.5) for n in self.shape])
        corners = self.index_to_um(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
        return corners.min(axis=0), corners.max(axis=0)

    def cropped(self, box: Box) -> Grid:
        """Return the grid of a box of voxels (which may reach outside)."""
        return self._moved(box.start, box.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))

    def padded(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """Return the grid with voxels added at the start and the end of each axis."""
        shape = [n + int(b) + int(a) for n, b, a in zip(self.shape, before, after, strict=True)]
        return self._moved([-int(b) for b in before], shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))

    def downsampled(self, factors: Sequence[int], *, partial: bool = True) -> Grid:
        """Return the grid of block averages over ``factors`` voxels.

        Parameters
        ----------
        factors
            Voxels per block, z y x.
        partial
            Keep the last block of an axis where it is not full (as pyramids do), or drop it.

        Notes
        -----
        Coarse voxel i lies at native index ``d * i + (d - 1) / 2``.
        """
        shape = [max(1, -(-n // int(d)) if partial else n // int(d)) for n, d in zip(self.shape, factors, strict=True)]
        return self._moved((0, 0, 0), shape, factors, [(int(d) - 1) / 2 for d in factors])

    def resampled(self, voxel_size_um: Sequence[float]) -> Grid:
        """Return a grid with the same outer corner and axes, another voxel size, and at least the same extent."""
        ratio = np.asarray(voxel_size_um, dtype=float) / np.asarray(self.voxel_size_um)
        shape = np.maximum(1, np.ceil(np.asarray(self.shape) / ratio - 1e-6)).astype(int)
        return self._moved((0, 0, 0), shape.tolist(), ratio.tolist(), ((ratio - 1) / 2).tolist())

    def with_corner_at(self, corner_um: ArrayLike) -> Grid:
        """Return the grid moved so that the outer corner of voxel (0, 0, 0) lies at ``corner_um``."""
        affine = self.affine.copy()
        affine[:3, 3] += np.asarray(corner_um, dtype=float) - self.corner_um()
        return Grid(self.shape, affine)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists for JSON."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Grid:
        """Make a grid from what `to_dict` returned."""
        return Grid(_triple(values["shape"]), np.asarray(values["affine"], dtype=float))

    def _moved(
        self, start: Sequence[int], shape: Sequence[int], scale: Sequence[float], shift: Sequence[float]
    ) -> Grid:
        """Index i of the result is index ``start + scale * i + shift`` here."""
        step = np.eye(4)
        step[:3, :3] = np.diag(np.asarray(scale, dtype=float))
        step[:3, 3] = np.asarray(start, dtype=float) + np.asarray(shift, dtype=float)
        return Grid(_triple(shape), self.affine @ step)


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(v) for v in values)
    return z, y, x
