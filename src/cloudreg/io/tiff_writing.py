"""Writing TIFF, box by box and in any order: one OME-TIFF file, or a folder of one per plane.

The files are made at their full size first, uncompressed, so that every voxel has its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.whole import explaining_full_disk
from cloudreg.space import Box, Grid


@dataclass(frozen=True)
class TiffBoxes:
    """Files that wait for their voxels; picklable.

    Parameters
    ----------
    place
        The file, or the folder of one a plane.
    files
        One file, or one a plane.
    offset
        Byte at which the voxels of each file start.
    shape, dtype
        Of all channels (c, z, y, x).
    """

    place: Path
    files: tuple[Path, ...]
    offset: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def write(self, box: Box, array: NDArray[Any], channel: int = 0) -> None:
        """Write a box of one channel, shape (z, y, x)."""
        _, depth, height, width = self.shape
        array = np.ascontiguousarray(array, self.dtype)
        whole = box.shape[2] == width
        for z, plane in zip(range(box.start[0], box.stop[0]), array, strict=True):
            page = channel if len(self.files) > 1 else channel * depth + z
            first = self.offset + ((page * height + box.start[1]) * width + box.start[2]) * self.dtype.itemsize
            file = self.files[z] if len(self.files) > 1 else self.files[0]
            with explaining_full_disk(file), file.open("r+b", buffering=0) as stream:
                for y, rows in enumerate([plane] if whole else plane):
                    stream.seek(first + y * width * self.dtype.itemsize)
                    left = memoryview(rows).cast("B")
                    while left:
                        left = left[stream.write(left) :]


def create_tiff(file: Path, channels: int, grid: Grid, dtype: np.dtype[Any]) -> TiffBoxes:
    """Make an uncompressed OME-TIFF of zeros with the grid's voxel size, channel after channel; keep one that is there.

    A file that is there was made by the same call, and was left by a run that was killed.
    """
    axes, shape = ("ZYX", grid.shape) if channels == 1 else ("CZYX", (channels, *grid.shape))
    return TiffBoxes(file, (file,), _create(file, axes, shape, grid, dtype, shape), (channels, *grid.shape), dtype)


def create_tiff_series(
    folder: Path, channels: int, grid: Grid, dtype: np.dtype[Any], names: Sequence[str] | None = None
) -> TiffBoxes:
    """Make a folder of one OME-TIFF per plane, (y, x) or (c, y, x), by these names or by number; see `create_tiff`."""
    digits = max(4, len(str(grid.shape[0] - 1)))
    axes, shape = ("YX", grid.shape[1:]) if channels == 1 else ("CYX", (channels, *grid.shape[1:]))
    files = tuple(folder / name for name in names or [f"plane_{z:0{digits}d}.tif" for z in range(grid.shape[0])])
    offsets = {_create(file, axes, shape, grid, dtype, (*shape, z)) for z, file in enumerate(files)}
    return TiffBoxes(folder, files, offsets.pop(), (channels, *grid.shape), dtype)


def require_tiff_type(dtype: np.dtype[Any], path: Path) -> None:
    """Refuse types that OME-TIFF has no name for."""
    if dtype.name in ("int64", "uint64"):
        raise InputError(
            f"expected voxels of at most 32-bit integers for TIFF, got {dtype.name} for {path}: give --dtype"
        )


def _create(
    file: Path, axes: str, shape: tuple[int, ...], grid: Grid, dtype: np.dtype[Any], key: tuple[int, ...]
) -> int:
    """Make a file of zeros, if it is not there, and return where its voxels start."""
    import tifffile

    size = int(np.prod(shape)) * dtype.itemsize
    if not file.exists():
        whole = file.with_name(f".new.{file.name}")
        with (
            explaining_full_disk(file),
            tifffile.TiffWriter(whole, bigtiff=size > 4 * 10**9 - 10**8, ome=True) as writer,
        ):
            writer.write(shape=shape, dtype=dtype, photometric="minisblack", metadata=_metadata(axes, grid, key))
        whole.replace(file)
    with tifffile.TiffFile(file) as tif:
        return int(tif.series[0].dataoffset)


def _metadata(axes: str, grid: Grid, key: tuple[int, ...]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": axes}
    # By default each file gets a random name inside; ours are the same each time.
    metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"cloudreg:{axes}:{key}"))
    for axis, size in zip("ZYX", grid.voxel_size_um, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return metadata
