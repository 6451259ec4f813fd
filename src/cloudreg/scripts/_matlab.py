"""The transforms of CloudReg 1: an affine and a velocity in MATLAB files, between the middles of two volumes.

Points go ``y = A phi(x)`` from the atlas to the target, in micrometres x y z from the middles. The velocity is stored
with axes y, x, z and time; it is integrated as CloudReg 1 did, in steps of one over their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.objects import is_remote, read_files


@dataclass(frozen=True)
class CenteredTransform:
    """What was fitted in 2021.

    Parameters
    ----------
    affine
        A, 4 x 4, atlas to target, x y z.
    velocity
        (3, x, y, z, t), components x y z, micrometres per unit of time; None for none.
    voxel_um
        Voxel size of the velocity, x y z.
    """

    affine: NDArray[np.float64]
    velocity: NDArray[np.float64] | None
    voxel_um: NDArray[np.float64]

    def target_to_atlas(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points (n, 3) from the target's middle to the atlas's."""
        inverse = np.linalg.inv(self.affine)
        return self._flow(points @ inverse[:3, :3].T + inverse[:3, 3], forward=False)

    def atlas_to_target(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points (n, 3) from the atlas's middle to the target's."""
        return np.asarray(self._flow(points, forward=True) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def _flow(self, points: NDArray[np.float64], *, forward: bool) -> NDArray[np.float64]:
        """Follow the velocity from time 0 to 1, or back."""
        if self.velocity is None:
            return points
        from scipy.ndimage import map_coordinates

        steps = self.velocity.shape[-1]
        middle = (np.asarray(self.velocity.shape[1:4]) - 1) / 2
        sign = 1 if forward else -1
        for step in range(steps) if forward else reversed(range(steps)):
            index = (points / self.voxel_um + middle).T
            moved = [map_coordinates(part[..., step], index, order=1, mode="nearest") for part in self.velocity]
            points = points + sign * np.stack(moved, axis=1) / steps
        return points


def read_centered(affine_path: str, velocity_path: str, voxel_um: Sequence[float]) -> CenteredTransform:
    """Read the files of a registration of 2021.

    Parameters
    ----------
    affine_path, velocity_path
        ``.mat`` files, here or in a bucket, or an affine as 4 x 4 numbers of text; the velocity may be empty for none.
    voxel_um
        Voxel size of the velocity, x y z.

    Raises
    ------
    InputError
        If a file does not hold what it should: one 4 x 4 matrix; three equal arrays of four dimensions.
    """
    matrices = [a for a in _arrays(affine_path).values() if a.shape == (4, 4)]
    if len(matrices) != 1:
        raise InputError(f"expected one matrix of 4 x 4 in {affine_path}, got {len(matrices)}")
    velocity = None
    if velocity_path:
        parts = [a for _, a in sorted(_arrays(velocity_path).items()) if a.ndim == 4]
        if len(parts) != 3 or len({part.shape for part in parts}) != 1:
            raise InputError(f"expected three equal arrays (y, x, z, time) in {velocity_path}, got {len(parts)}")
        velocity = np.stack([part.transpose(1, 0, 2, 3) for part in parts])
    return CenteredTransform(matrices[0], velocity, np.asarray(voxel_um, dtype=float))


def _arrays(path: str) -> dict[str, NDArray[np.float64]]:
    """Return the arrays of numbers of a MATLAB file, or those of a text file under one name."""
    from io import BytesIO

    from scipy.io import loadmat

    folder, _, name = path.rpartition("/")
    if is_remote(path):
        content = read_files(folder, [name]).get(name)
        if content is None:
            raise InputError(f"expected a file at {path}, found nothing: check the address")
    else:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"expected a file at {path}: {error.strerror}") from error
    try:
        if path.endswith(".mat"):
            found = loadmat(BytesIO(content))
            return {k: np.asarray(v, float) for k, v in found.items() if isinstance(v, np.ndarray) and v.dtype != "O"}
        return {"text": np.loadtxt(BytesIO(content), ndmin=2)}
    except (ValueError, NotImplementedError, TypeError) as error:
        raise InputError(f"expected numbers of MATLAB (up to 7) or text in {path}: {error}") from error
