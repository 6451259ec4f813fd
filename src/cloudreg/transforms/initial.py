"""Where a registration starts: a file of ours or of ITK, ANTs, Slicer or ITK-SNAP; or angles, a shift and scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid, axes_between
from cloudreg.transforms.frames import Frame
from cloudreg.transforms.transform import inverted, load_affine

_FIRST_LINE = "#Insight Transform File"
_SUFFIXES = (".tfm", ".mat", ".h5", ".hdf5")
_LEAST_OVERLAP = 0.1
_SAMPLES = 12


def turned(axes: NDArray[np.float64], rotation_deg: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Return the matrix that reorients, then turns, then scales.

    Parameters
    ----------
    axes
        3 x 3, from source axes to destination axes (`cloudreg.space.axes_between`).
    rotation_deg
        About the destination's z, y and x axes, in this order; x is turned about first, z last. A positive angle about
        x takes y toward z, about y takes z toward x, about z takes x toward y.
    scale
        One number, or one for each of the destination's axes z, y, x.

    Returns
    -------
    ndarray, shape (3, 3)
        Vectors of source z, y, x to those of destination z, y, x.
    """
    linear = np.asarray(axes, dtype=np.float64)
    for axis, angle in zip((2, 1, 0), np.deg2rad(rotation_deg)[::-1], strict=True):
        # In the order z y x, a turn about an axis takes the one two places on toward the one next to it.
        i, j = (axis + 2) % 3, (axis + 1) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        linear = turn @ linear
    return np.broadcast_to(np.asarray(scale, dtype=np.float64), 3)[:, np.newaxis] * linear


def affine_between_middles(
    atlas: Frame,
    target: Frame,
    *,
    rotation_deg: ArrayLike = (0.0, 0.0, 0.0),
    translation_um: ArrayLike = (0.0, 0.0, 0.0),
    scale: ArrayLike = (1.0,),
    allow_mirror: bool = False,
) -> NDArray[np.float64]:
    """Put the atlas's middle on the target's, turn the atlas about it, shift it, and scale both.

    Parameters
    ----------
    atlas, target
        Where both volumes lie, and their letters.
    rotation_deg, scale
        As for `turned`, in the target's axes.
    translation_um
        Along the target's axes z, y, x, before scaling.
    allow_mirror
        Accept letters whose relation is a mirror image.

    Returns
    -------
    ndarray, shape (4, 4)
        Atlas micrometres to target micrometres, z y x.

    Raises
    ------
    InputError
        If letters are not known, or are mirror images of each other.
    """
    if atlas.orientation is None or target.orientation is None:
        raise InputError(
            "a rotation and a translation are relative to the target's axes, but its orientation is not known: give "
            "--orientation too"
        )
    axes = axes_between(atlas.orientation, target.orientation, allow_mirror=allow_mirror)
    middles = [sum(frame.grid.bounds_um()) / 2 for frame in (atlas, target)]
    affine = np.eye(4)
    affine[:3, :3] = turned(axes, rotation_deg, scale)
    affine[:3, 3] = middles[1] + np.multiply(scale, translation_um) - affine[:3, :3] @ middles[0]
    return affine


def load_initial_affine(
    path: str | Path, atlas: Frame, target: Frame, *, from_target: bool = False
) -> NDArray[np.float64]:
    """Read an affine from the atlas to the target.

    Parameters
    ----------
    path
        4 x 4 numbers in micrometres, z y x, as `save_affine` writes them; or a file of ITK (``.mat``, ``.tfm``,
        ``.h5``, or ``.txt`` that begins as ITK's do) between the LPS millimetres of both volumes.
    atlas, target
        Where both lie.
    from_target
        The file takes target points to the atlas, and not atlas points to the target. ITK's transforms go from the
        fixed image to the moving one: true if the target was the fixed image.

    Returns
    -------
    ndarray, shape (4, 4)
        Atlas micrometres to target micrometres, z y x.

    Raises
    ------
    InputError
        If the file holds no linear transform, or one that puts the atlas where the target is not.
    """
    path = Path(path)
    if _is_itk(path):
        world = read_itk_affine(path)
        there, back = _between(world, atlas, target), inverted(_between(world, target, atlas))
    else:
        there = load_affine(path)
        back = inverted(there)
    affine, other = (back, there) if from_target else (there, back)
    common = overlap(affine, atlas.grid, target.grid)
    if common < _LEAST_OVERLAP:
        advice = (
            "the inverse does better: was it made the other way round?"
            if overlap(other, atlas.grid, target.grid) > common
            else "check which volumes it was made for, and that both have the same headers here"
        )
        raise InputError(
            f"expected an affine that brings the atlas to the target, got one in {path} that leaves {common:.0%} "
            f"in common: {advice}"
        )
    return affine


def _between(world: NDArray[np.float64], first: Frame, last: Frame) -> NDArray[np.float64]:
    """Return a map between LPS millimetres as one between the micrometres of two volumes."""
    matrix = inverted(last.to_lps_mm) @ world @ first.to_lps_mm
    matrix[3] = (0, 0, 0, 1)
    return np.asarray(matrix)


def read_itk_affine(path: str | Path) -> NDArray[np.float64]:
    """Read a linear transform of ITK: any class of them, or a chain.

    Returns
    -------
    ndarray, shape (4, 4)
        Point to point, LPS millimetres, x y z.

    Raises
    ------
    InputError
        If there is no such file, or it holds no transform that is linear, three-dimensional and invertible.
    """
    import SimpleITK as sitk

    if not Path(path).is_file():
        raise InputError(f"expected an ITK transform at {path}, found none: check the path")
    try:
        read = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"expected an ITK transform at {path}: {str(error).strip().splitlines()[-1]}") from error
    if read.GetDimension() != 3 or not read.IsLinear():
        raise InputError(
            f"expected a linear transform in three dimensions at {path}, got {read.GetName()} in "
            f"{read.GetDimension()}: give the affine alone"
        )
    matrix = np.eye(4)
    matrix[:3, 3] = read.TransformPoint((0.0, 0.0, 0.0))
    for axis, unit in enumerate(np.eye(3)):
        matrix[:3, axis] = np.subtract(read.TransformPoint(unit.tolist()), matrix[:3, 3])
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) == 0:
        raise InputError(f"expected an affine that can be undone at {path}, got {matrix.tolist()}")
    return matrix


def _is_itk(path: Path) -> bool:
    if path.name.lower().endswith(_SUFFIXES):
        return True
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(_FIRST_LINE)
    except (OSError, UnicodeDecodeError):
        return False


def overlap(affine: NDArray[np.float64], atlas: Grid, target: Grid) -> float:
    """Return how much of the smaller volume an affine from atlas to target puts into the other one, 0 to 1."""
    there = _share_inside(affine, atlas, target)
    return max(there, _share_inside(inverted(affine), target, atlas))


def _share_inside(affine: NDArray[np.float64], source: Grid, destination: Grid) -> float:
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    index = np.stack(np.meshgrid(*(steps * n - 0.5 for n in source.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    moved = destination.um_to_index(source.index_to_um(index) @ affine[:3, :3].T + affine[:3, 3])
    return float(((moved >= -0.5) & (moved <= np.asarray(destination.shape) - 0.5)).all(axis=1).mean())
