"""NRRD files, by pynrrd.

The array's axes are the file's, fastest first (as pynrrd gives them); an axis without direction holds channels.

References
----------
.. [1] https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import held_dtype, likely_kind
from cloudreg.io.frames import RAS_LETTERS, grid_from_ras, ras_from_grid
from cloudreg.io.lengths import VoxelSizeUnknownError, likely_micrometres, micrometres_per
from cloudreg.io.volume import Volume
from cloudreg.io.whole import WholeFile
from cloudreg.space import Grid

# How the axes of the named spaces point, as signs of R, A and S.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_TYPES = {
    alias: dtype
    for dtype, aliases in {
        "int8": ("signed char", "int8", "int8_t"),
        "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "int32": ("int", "signed int", "int32", "int32_t"),
        "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
        "int64": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "float32": ("float",),
        "float64": ("double",),
    }.items()
    for alias in aliases
}


class NrrdFile(WholeFile):
    """The voxels of an NRRD file."""

    def __init__(self, file: Path, channel_axis: int | None) -> None:
        super().__init__(file)
        self.channel_axis = channel_axis

    def load(self) -> NDArray[Any]:
        """Return the whole array, shape (c, z, y, x)."""
        import nrrd

        try:
            array, _ = nrrd.read(str(self.file))
        except (OSError, EOFError, ValueError, zlib.error, nrrd.NRRDError) as error:
            raise InputError(
                f"expected the whole file {self.file}, got a damaged one ({_line(error)}): copy it again"
            ) from error
        stacked = array[np.newaxis] if self.channel_axis is None else np.moveaxis(array, self.channel_axis, 0)
        return np.asarray(stacked[..., np.newaxis] if stacked.ndim == 3 else stacked)


def read_nrrd(file: Path) -> Volume:
    """Describe an NRRD file."""
    header = _header(file)
    sizes = [int(n) for n in header["sizes"]]
    directions, channel_axis = _directions(header, file)
    shape = [n for i, n in enumerate(sizes) if i != channel_axis]
    if len(shape) != 3:
        raise InputError(f"expected three space axes in {file}, got sizes {sizes}: cut a volume out")
    z, y, x = shape
    spacing = np.linalg.norm(directions, axis=0)
    units = header.get("space units") or header.get("units")
    named = [u for u in units if str(u).strip('" ') not in ("", "none", "???", "nan")] if units is not None else []
    um = micrometres_per(str(named[0]), str(file)) if named else likely_micrometres(shape, spacing.tolist())
    notes = (
        () if named else (f"no unit of length in the header: taken as {'micrometres' if um == 1 else 'millimetres'}",)
    )
    matrix = np.eye(4)
    matrix[:3, :3] = directions * um
    origin = np.asarray(header.get("space origin", [0.0, 0.0, 0.0]), dtype=float) * um
    matrix[:3, 3] = np.nan_to_num(origin)
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is None:
        # Axes that aren't named are the array's order: nothing says which side is which.
        grid, orientation = Grid((z, y, x), matrix), None
    else:
        matrix[:3] *= np.asarray(signs, dtype=float)[:, np.newaxis]
        grid, orientation = grid_from_ras((z, y, x), matrix), RAS_LETTERS
    dtype = held_dtype(_dtype(header, file), str(file))
    return Volume(
        path=str(file),
        format="nrrd",
        kind=likely_kind(dtype),
        dtype=dtype,
        channels=1 if channel_axis is None else sizes[channel_axis],
        levels=(grid,),
        chunk=(z, y, x),
        source=NrrdFile(file, channel_axis),
        orientation=orientation,
        notes=notes,
    )


def write_nrrd(file: Path, array: NDArray[Any], grid: Grid, orientation: str | None) -> None:
    """Write a (z, y, x) or (c, z, y, x) array, gzipped; with letters in RAS millimetres, else in its own axes."""
    import nrrd

    header: dict[str, Any] = {"encoding": "gzip", "kinds": ["domain"] * 3}
    if orientation is None:
        matrix, unit = grid.affine, "um"
        header["space dimension"] = 3
    else:
        matrix, unit = ras_from_grid(grid, orientation) * 1e-3, "mm"
        header["space"] = "right-anterior-superior"
    directions = matrix[:3, :3].T
    if array.ndim == 4:
        directions = np.vstack([np.full(3, np.nan), directions])
        header["kinds"] = ["list", *header["kinds"]]
    header |= {"space directions": directions, "space origin": matrix[:3, 3], "space units": [unit] * 3}
    nrrd.write(str(file), array, header, compression_level=3)


def _header(file: Path) -> dict[str, Any]:
    import nrrd

    try:
        return dict(nrrd.read_header(str(file)))
    except (OSError, ValueError, nrrd.NRRDError) as error:
        raise InputError(f"expected an NRRD file at {file}: {_line(error)}") from error


def _dtype(header: dict[str, Any], file: Path) -> np.dtype[Any]:
    name = _TYPES.get(str(header["type"]).lower())
    if name is None:
        raise InputError(f"expected an NRRD file of numbers at {file}, got type {header['type']!r}")
    return np.dtype(name)


def _directions(header: dict[str, Any], file: Path) -> tuple[NDArray[np.float64], int | None]:
    """Return a 3 x 3 matrix whose columns are the steps along the space axes, and the axis that is none."""
    rank = len(header["sizes"])
    given = header.get("space directions")
    if given is not None:
        rows = np.asarray([np.full(3, np.nan) if r is None else r for r in given], dtype=float)
        space = np.isfinite(rows).all(axis=1)
    else:
        spacings = np.asarray(header.get("spacings", np.ones(rank)), dtype=float)
        kinds = header.get("kinds", ["domain"] * rank)
        space = np.asarray([k in ("domain", "space") for k in kinds])
        if space.sum() == 3 and not np.isfinite(spacings[space]).all():
            raise VoxelSizeUnknownError(
                f"expected a spacing for each axis of {file}, got {spacings.tolist()}: give --voxel-size Z Y X"
            )
        rows = np.zeros((rank, 3))
        if space.sum() == 3:
            rows[space] = np.diag(spacings[space])
    others = np.flatnonzero(~space)
    if space.sum() != 3 or len(others) > 1:
        raise InputError(
            f"expected three space axes and at most one of channels in {file}, got sizes {header['sizes']}"
        )
    return rows[space].T, int(others[0]) if len(others) else None


def _line(error: BaseException) -> str:
    return str(error).replace("\n", " ")
