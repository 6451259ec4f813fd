"""How Neuroglancer sees a precomputed volume: x y z, from the corners of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.objects import plain_address, read_json
from cloudreg.io.precomputed import PREFIX


@dataclass(frozen=True)
class Scale:
    """The finest scale of a volume, x y z.

    Parameters
    ----------
    size, offset
        Voxels, and the number of the first one.
    voxel_um
        Voxel size.
    """

    size: NDArray[np.int64]
    voxel_um: NDArray[np.float64]
    offset: NDArray[np.int64]

    @property
    def middle_um(self) -> NDArray[np.float64]:
        """Middle of the volume."""
        return np.asarray((self.offset + self.size / 2) * self.voxel_um)

    def index(self, points_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the array index (z, y, x; whole numbers are centres of voxels) of points (n, 3) x y z."""
        return np.asarray(points_um / self.voxel_um - self.offset - 0.5)[:, ::-1]

    def points_um(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where array indexes lie; the inverse of `index`."""
        return np.asarray((index[:, ::-1] + self.offset + 0.5) * self.voxel_um)


def read_info(path: str) -> dict[str, Any]:
    """Return the ``info`` of a precomputed volume.

    Raises
    ------
    InputError
        If there is none.
    """
    address = plain_address(path.removeprefix(PREFIX))
    info = read_json(address, "info")
    if info is None or not info.get("scales"):
        raise InputError(f"expected a precomputed volume with an info file at {address}, got none: check the path")
    return info


def finest_scale(path: str) -> Scale:
    """Return the finest scale of a precomputed volume."""
    scale = read_info(path)["scales"][0]
    offset = np.asarray(scale.get("voxel_offset", [0, 0, 0]))
    return Scale(np.asarray(scale["size"]), np.asarray(scale["resolution"], dtype=float) / 1000, offset)
