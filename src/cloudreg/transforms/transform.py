"""The map between an atlas and a target: ``y = A phi(x)`` and back, ``x = phi^-1(A^-1 y)``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.space import Box, Grid
from cloudreg.transforms.displacement import DisplacementField

Side = Literal["target", "atlas"]

AFFINE_NAME = "affine.txt"
TO_TARGET_NAME = "displacement_atlas_to_target.ome.zarr"
TO_ATLAS_NAME = "displacement_target_to_atlas.ome.zarr"


@dataclass(frozen=True, eq=False)
class Transform:
    """An affine after a diffeomorphism, with its inverse.

    Parameters
    ----------
    affine
        A: 4 x 4, atlas micrometres to target micrometres, z y x.
    to_target
        phi - id, on a grid in atlas space.
    to_atlas
        phi^-1 - id, on a grid in atlas space.
    """

    affine: NDArray[np.float64]
    to_target: DisplacementField
    to_atlas: DisplacementField

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        # Through Grid, which is the one judge of what an affine is.
        object.__setattr__(self, "affine", Grid((1, 1, 1), affine).affine)

    @staticmethod
    def from_affine(affine: ArrayLike, grid: Grid) -> Transform:
        """Return an affine without deformation; ``grid`` is the part of atlas space that it is meant for."""
        zero = DisplacementField.zero(grid)
        return Transform(np.asarray(affine, dtype=np.float64), zero, zero)

    @property
    def inverse_affine(self) -> NDArray[np.float64]:
        """B = A^-1: target micrometres to atlas micrometres."""
        return inverted(self.affine)

    def inverse(self) -> Transform:
        """Return the map with atlas and target exchanged.

        It is ``x = B psi(y)`` with ``psi = A phi^-1 B``: the inverse deformation as the target sees it, on nodes
        that move along. Nothing is interpolated, so only float32 is lost.
        """
        return Transform(self.inverse_affine, self.to_atlas.mapped(self.affine), self.to_target.mapped(self.affine))

    def in_frames(self, *, atlas: ArrayLike | None = None, target: ArrayLike | None = None) -> Transform:
        """Return the same map between other coordinates of the same places.

        Parameters
        ----------
        atlas, target
            4 x 4, from the present coordinates to the new ones; whatever unit these have takes the place of
            micrometres. None keeps them.
        """
        old, new = (np.eye(4) if m is None else np.asarray(m, dtype=np.float64) for m in (atlas, target))
        affine = new @ self.affine @ inverted(old)
        affine[3] = (0, 0, 0, 1)
        return Transform(affine, self.to_target.mapped(old), self.to_atlas.mapped(old))

    def atlas_to_target(self, points_um: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Map atlas points (n, 3) to the target.

        Returns
        -------
        points_um, inside
            (n, 3), and whether each lay within the field; the others are mapped with the displacement at its edge,
            and NaN stays NaN.
        """
        points, finite = _points(points_um)
        moved = np.full_like(points, np.nan)
        moved[finite] = points[finite] + self.to_target.displacement(points[finite])
        return _apply(self.affine, moved), self.to_target.contains(points)

    def target_to_atlas(self, points_um: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Map target points (n, 3) to the atlas; as `atlas_to_target`."""
        points, finite = _points(points_um)
        straight = _apply(self.inverse_affine, points)
        moved = np.full_like(points, np.nan)
        moved[finite] = straight[finite] + self.to_atlas.displacement(straight[finite])
        return moved, self.to_atlas.contains(straight)

    def save(self, folder: str | Path) -> None:
        """Write the affine and both fields into a folder, the affine last.

        What a killed `save` left is written anew; nothing happens where this very transform is there already.

        Raises
        ------
        InputError
            If the folder holds another transform.
        """
        folder = Path(folder)
        if (folder / AFFINE_NAME).exists():
            if not Transform.load(folder)._equals(self):
                raise InputError(f"{folder} holds another registration: choose a new folder or remove that one")
            return
        folder.mkdir(parents=True, exist_ok=True)
        _save_field(self.to_target, folder / TO_TARGET_NAME)
        _save_field(self.to_atlas, folder / TO_ATLAS_NAME)
        save_affine(self.affine, folder / AFFINE_NAME)

    @staticmethod
    def load(folder: str | Path) -> Transform:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If a file is missing or is not what it should be.
        """
        folder = Path(folder)
        affine = load_affine(folder / AFFINE_NAME)
        return Transform(affine, _load_field(folder / TO_TARGET_NAME), _load_field(folder / TO_ATLAS_NAME))

    def _equals(self, other: Transform) -> bool:
        pairs = ((self.to_target, other.to_target), (self.to_atlas, other.to_atlas))
        return np.array_equal(self.affine, other.affine) and all(
            a.grid == b.grid and np.array_equal(a.vectors, b.vectors) for a, b in pairs
        )


def save_affine(affine: NDArray[np.float64], path: str | Path) -> None:
    """Write a 4 x 4 matrix as text, every bit of it."""
    path = Path(path)
    lines = ["# 4 x 4, atlas micrometres to target micrometres, rows and columns z y x 1"]
    lines += [" ".join(repr(float(v)) for v in row) for row in affine]
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.replace(path)


def load_affine(path: str | Path) -> NDArray[np.float64]:
    """Read a 4 x 4 matrix, atlas micrometres to target micrometres, from text.

    Raises
    ------
    InputError
        If there is no such file, or it holds no invertible 4 x 4 matrix of finite numbers with last row 0 0 0 1.
    """
    path = Path(path)
    try:
        lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text().splitlines()]
        matrix = np.array([[float(word) for word in line] for line in lines if line])
    except FileNotFoundError:
        raise InputError(f"expected an affine at {path}, found none: is its folder a finished registration?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"expected 4 x 4 numbers in {path}: {error}") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) == 0:
        raise InputError(f"expected an invertible 4 x 4 matrix (z y x, micrometres) in {path}, got {matrix.tolist()}")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"expected 0 0 0 1 as the last row of the affine in {path}, got {matrix[3].tolist()}")
    return matrix


def inverted(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a 4 x 4 affine, its last row exactly 0 0 0 1."""
    result = np.eye(4)
    result[:3, :3] = np.linalg.inv(affine[:3, :3])
    result[:3, 3] = -result[:3, :3] @ affine[:3, 3]
    return result


def inverse_consistency_um(transform: Transform, points_um: ArrayLike) -> NDArray[np.float64]:
    """Return how far each atlas point (n, 3) comes back from itself after going to the target and back; 0 is best."""
    points = np.asarray(points_um, dtype=np.float64).reshape(-1, 3)
    there, _ = transform.atlas_to_target(points)
    back, _ = transform.target_to_atlas(there)
    return np.asarray(np.linalg.norm(back - points, axis=1))


def _save_field(field: DisplacementField, path: Path) -> None:
    from cloudreg.io import create_volume

    writer = create_volume(str(path), field.grid, np.dtype(np.float32), channels=3, levels=1, overwrite=True)
    for component in range(3):
        writer.write(Box.whole(field.grid.shape), field.vectors[component], channel=component)
    writer.complete()


def _load_field(path: Path) -> DisplacementField:
    from cloudreg.io import open_volume

    volume = open_volume(str(path))
    if volume.channels != 3:
        raise InputError(
            f"expected a displacement field with 3 components (z, y, x um) at {path}, got {volume.channels}"
        )
    return DisplacementField(volume.grid, volume.read(channel=None))


def _apply(affine: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def _points(points_um: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    points = np.asarray(points_um, dtype=np.float64).reshape(-1, 3)
    return points, np.asarray(np.isfinite(points).all(axis=1))
