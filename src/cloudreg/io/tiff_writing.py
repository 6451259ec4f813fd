"""Writing TIFF: one OME-TIFF file, or a folder of one per plane."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid


def write_tiff(file: Path, planes: Iterator[NDArray[Any]], channels: int, grid: Grid, dtype: np.dtype[Any]) -> None:
    """Write planes, all of channel 0 first, as an uncompressed OME-TIFF with the grid's voxel size."""
    import tifffile

    axes, shape = ("ZYX", grid.shape) if channels == 1 else ("CZYX", (channels, *grid.shape))
    size = int(np.prod(shape)) * dtype.itemsize
    with tifffile.TiffWriter(file, bigtiff=size > 4 * 10**9 - 10**8, ome=True) as writer:
        writer.write(planes, shape=shape, dtype=dtype, photometric="minisblack", metadata=_metadata(axes, grid, shape))


def write_tiff_series(
    folder: Path, planes: Iterator[NDArray[Any]], channels: int, grid: Grid, dtype: np.dtype[Any]
) -> None:
    """Write one OME-TIFF per plane into a folder; each plane is (y, x), or (c, y, x) with several channels."""
    import tifffile

    digits = max(4, len(str(grid.shape[0] - 1)))
    axes = "YX" if channels == 1 else "CYX"
    for z, plane in enumerate(planes):
        metadata = _metadata(axes, grid, (*plane.shape, z))
        with tifffile.TiffWriter(folder / f"plane_{z:0{digits}d}.tif", ome=True) as writer:
            writer.write(plane, photometric="minisblack", metadata=metadata)


def require_tiff_type(dtype: np.dtype[Any], path: Path) -> None:
    """Refuse types that OME-TIFF has no name for."""
    if dtype.name in ("int64", "uint64"):
        raise InputError(
            f"expected voxels of at most 32-bit integers for TIFF, got {dtype.name} for {path}: give --dtype"
        )


def _metadata(axes: str, grid: Grid, key: tuple[int, ...]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": axes}
    # By default each file gets a random name inside; ours are the same each time.
    metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"cloudreg:{axes}:{key}"))
    for axis, size in zip("ZYX", grid.voxel_size_um, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return metadata
