"""Where a registration starts, from a file of ours or of ITK, ANTs, Slicer or ITK-SNAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms.frames import Frame
from cloudreg.transforms.transform import inverted, load_affine

_FIRST_LINE = "#Insight Transform File"
_SUFFIXES = (".tfm", ".mat", ".h5", ".hdf5")
_LEAST_OVERLAP = 0.1
_SAMPLES = 12


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
    overlap = _overlap(affine, atlas.grid, target.grid)
    if overlap < _LEAST_OVERLAP:
        advice = (
            "the inverse does better: was it made the other way round?"
            if _overlap(other, atlas.grid, target.grid) > overlap
            else "check which volumes it was made for, and that both have the same headers here"
        )
        raise InputError(
            f"expected an affine that brings the atlas to the target, got one in {path} that leaves {overlap:.0%} "
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


def _overlap(affine: NDArray[np.float64], atlas: Grid, target: Grid) -> float:
    """Return how much of the smaller volume lies in the other one, 0 to 1."""
    there = _share_inside(affine, atlas, target)
    return max(there, _share_inside(inverted(affine), target, atlas))


def _share_inside(affine: NDArray[np.float64], source: Grid, destination: Grid) -> float:
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    index = np.stack(np.meshgrid(*(steps * n - 0.5 for n in source.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    moved = destination.um_to_index(source.index_to_um(index) @ affine[:3, :3].T + affine[:3, 3])
    return float(((moved >= -0.5) & (moved <= np.asarray(destination.shape) - 0.5)).all(axis=1).mean())
