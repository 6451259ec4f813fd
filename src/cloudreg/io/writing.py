"""Write an array that is in memory, in the format that the path's name says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import require_free_space
from cloudreg.io.create import create_volume
from cloudreg.io.dtypes import Kind, held_dtype
from cloudreg.io.nifti import write_nifti
from cloudreg.io.nrrd import write_nrrd
from cloudreg.io.objects import is_remote, plain_address
from cloudreg.io.opening import open_volume
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.pyramid import build_pyramid
from cloudreg.io.tiff import TIFF_SUFFIXES
from cloudreg.io.tiff_writing import create_tiff, require_tiff_type
from cloudreg.io.volume import Volume
from cloudreg.io.whole import new_file
from cloudreg.space import Box, Grid, parse_orientation, split

Format = Literal["chunked", "tiff", "tiff-series", "nifti", "nrrd"]


def writable_format(path: str | os.PathLike[str]) -> Format:
    """Return the format that a name asks for; a name without suffix is a folder of TIFF planes.

    Raises
    ------
    InputError
        If there is no name, or the suffix is of no format that is written, or of one that is not written to where the
        path is.
    """
    text = os.fspath(path)
    name = Path(plain_address(text.removeprefix(PREFIX))).name.lower()
    if not name:
        raise InputError(f"expected the name of a new volume, got {text!r}: such as brain.ome.zarr")
    if text.startswith(PREFIX) or name.endswith(".zarr"):
        return "chunked"
    if is_remote(plain_address(text)):
        raise InputError(
            f"expected a place on this machine for files, got {text}: to a bucket write .ome.zarr or precomputed://"
        )
    if name.endswith(TIFF_SUFFIXES):
        return "tiff"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(".nrrd"):
        return "nrrd"
    if "." not in name.lstrip("."):
        return "tiff-series"
    raise InputError(
        f"expected a path that ends in .ome.zarr, .tif, .nii, .nii.gz or .nrrd, starts with precomputed://, or has no "
        f"suffix (a folder of TIFF planes), got {text}"
    )


def write_volume(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    grid: Grid,
    *,
    kind: Kind = "image",
    orientation: str | None = None,
    channel_names: Sequence[str] | None = None,
    levels: int | None = None,
    overwrite: bool = False,
) -> Volume:
    """Write a whole array; the path holds all of it or nothing that opens.

    Parameters
    ----------
    path
        See `writable_format`.
    array
        Shape (z, y, x) or (c, z, y, x).
    grid
        Where its voxels lie. TIFF keeps the voxel size only; NIfTI and NRRD have no levels.
    kind, orientation, channel_names, levels
        See `create_volume`.
    overwrite
        Replace a volume that stands there.

    Raises
    ------
    InputError
        If the path holds something, the format can't hold the type, or the disk is too small.
    """
    if array.ndim not in (3, 4) or array.shape[-3:] != grid.shape:
        raise InputError(f"expected an array of shape {grid.shape} or (c, {grid.shape}) for {path}, got {array.shape}")
    array = array.astype(held_dtype(array.dtype, str(path)), copy=False)
    form = writable_format(path)
    letters = None if orientation is None else parse_orientation(orientation)
    if form == "chunked":
        return _write_chunked(path, array, grid, kind, letters, channel_names, levels, overwrite)
    file = Path(plain_address(os.fspath(path)))
    require_new(file, overwrite)
    if form == "tiff-series":
        raise InputError(f"expected a path with a suffix for a whole array, got {path}: such as {path}.tif")
    require_free_space(file.parent, array.nbytes, f"file {file}")
    with new_file(file) as temporary:
        temporary.unlink(missing_ok=True)
        if form == "tiff":
            require_tiff_type(array.dtype, file)
            stacked = array.reshape(-1, *grid.shape)
            boxes = create_tiff(temporary, len(stacked), grid, array.dtype)
            for channel, voxels in enumerate(stacked):
                boxes.write(Box.whole(grid.shape), voxels, channel)
        elif form == "nifti":
            write_nifti(temporary, array, grid, kind, letters)
        else:
            write_nrrd(temporary, array, grid, letters)
    return open_volume(file, kind=kind)


def require_new(file: Path, overwrite: bool) -> None:
    """Refuse to write where something is, unless it is a file and may be replaced."""
    if file.is_dir() or (file.exists() and not overwrite):
        raise InputError(
            f"expected nothing at {file}, got a {'folder' if file.is_dir() else 'file'}: choose a new place"
        )


def _write_chunked(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    grid: Grid,
    kind: Kind,
    orientation: str | None,
    channel_names: Sequence[str] | None,
    levels: int | None,
    overwrite: bool,
) -> Volume:
    stacked = array if array.ndim == 4 else array[np.newaxis]
    writer = create_volume(
        path,
        grid,
        array.dtype,
        channels=len(stacked),
        kind=kind,
        orientation=orientation,
        channel_names=channel_names,
        levels=levels,
        overwrite=overwrite,
    )
    slab = (writer.block_shape()[0], *grid.shape[1:])
    for box in split(grid.shape, slab):
        writer.write(box, np.ascontiguousarray(stacked[(slice(None), *box.slices)]), channel=None)
    build_pyramid(writer)
    return writer.complete()
