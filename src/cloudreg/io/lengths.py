"""Units of length, and what to suppose where a file names none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloudreg.errors import InputError


class VoxelSizeUnknownError(InputError):
    """A file does not say how large its voxels are, or in no unit of length; the caller can."""


_UM = {
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
}


def micrometres_per(unit: str, where: str) -> float:
    """Return the length of a unit in micrometres.

    Raises
    ------
    InputError
        If it is no unit of length.
    """
    value = _UM.get(unit.strip().strip('"').lower())
    if value is None:
        raise VoxelSizeUnknownError(
            f"expected a unit of length such as micrometer in {where}, got {unit!r}: give --voxel-size Z Y X"
        )
    return value


def likely_micrometres(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the unit, in micrometres, of a spacing that has none: no brain is a metre long.

    An extent above 1000 is therefore in micrometres, and anything less is taken as millimetres.
    """
    extent = np.asarray(shape, dtype=float) * np.abs(np.asarray(spacing, dtype=float))
    return 1.0 if float(extent.max()) > 1000.0 else 1000.0


def checked_voxel_size(voxel_size_um: Sequence[float], where: str) -> tuple[float, float, float]:
    """Return three positive lengths z, y, x, or raise `InputError`."""
    values = [float(v) for v in voxel_size_um]
    if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(f"a voxel size is three positive micrometres z y x; got {values} for {where}")
    return values[0], values[1], values[2]
