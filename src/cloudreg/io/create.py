"""New chunked volumes, written block by block and marked complete last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cloudreg.errors import InputError
from cloudreg.execution import require_free_space
from cloudreg.io.chunked import ChunkedSource, StoredArray
from cloudreg.io.dtypes import Kind, held_dtype
from cloudreg.io.layout import KEY, Layout
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.objects import (
    Json,
    is_remote,
    plain_address,
    read_json,
    read_jsons,
    remove_folder,
    require_bucket,
    write_json,
    write_new_json,
)
from cloudreg.io.ome_zarr import ome_zarr_arrays, ome_zarr_metadata
from cloudreg.io.opening import ROOTS, open_volume
from cloudreg.io.precomputed import PREFIX, precomputed_arrays, precomputed_metadata
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid, parse_orientation

_ROOT = {"ome-zarr": "zarr.json", "precomputed": "info"}


@dataclass(frozen=True, eq=False)
class VolumeWriter:
    """A volume that is being written; picklable, so that workers can write its blocks.

    Blocks that are whole multiples of `block_shape` may be written at the same time and in any order: the bytes on
    disk do not depend on it.
    """

    layout: Layout
    arrays: tuple[StoredArray, ...]

    @property
    def path(self) -> str:
        """Path of the volume, as `open_volume` takes it."""
        return (PREFIX if self.layout.format == "precomputed" else "") + self.layout.path

    @property
    def levels(self) -> tuple[Grid, ...]:
        """Grid of each level, finest first."""
        return self.layout.levels

    @property
    def grid(self) -> Grid:
        """Grid of the finest level."""
        return self.layout.levels[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.layout.dtype

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.layout.channels

    @property
    def kind(self) -> Kind:
        """Brightness or ids."""
        return self.layout.kind

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Voxels per chunk of the finest level, z y x."""
        return self.layout.chunk_of(0)

    def block_shape(self, level: int = 0) -> tuple[int, int, int]:
        """Smallest box, in voxels of the level, that may be written independently of others, z y x."""
        return self.layout.chunk_of(level)

    @property
    def volume(self) -> Volume:
        """The volume as far as it is written; blocks not yet written read as 0."""
        layout = self.layout
        return Volume(
            path=self.path,
            format=layout.format,
            kind=layout.kind,
            dtype=layout.dtype,
            channels=layout.channels,
            levels=layout.levels,
            chunk=self.chunk,
            source=ChunkedSource(self.arrays),
            orientation=layout.orientation,
            channel_names=layout.channel_names,
        )

    def read(self, box: Box | None = None, *, level: int = 0, channel: int | None = 0) -> NDArray[Any]:
        """Read a box of what is written so far; see `Volume.read`."""
        return self.volume.read(box, level=level, channel=channel)

    def write(self, box: Box, array: NDArray[Any], *, level: int = 0, channel: int | None = 0) -> None:
        """Write a box of voxels; returns when it is on disk.

        Parameters
        ----------
        box
            In voxels of the level.
        array
            Shape (z, y, x), or (c, z, y, x) for ``channel=None``; of type ``dtype`` (see `to_dtype`).

        Raises
        ------
        ValueError
            If the array's type or shape is not the volume's.
        """
        channels = slice(0, self.channels) if channel is None else slice(channel, channel + 1)
        stacked = array if channel is None else array[np.newaxis]
        expected = (channels.stop - channels.start, *box.shape)
        if stacked.dtype != self.dtype or stacked.shape != expected:
            raise ValueError(
                f"{self.path} box {box} takes {self.dtype} of shape {expected}, got {stacked.dtype} {stacked.shape}"
            )
        self.arrays[level].write(channels, box, stacked)

    def complete(self) -> Volume:
        """Mark the volume complete and return it; all blocks of all levels must be written."""
        write_json(self.layout.path, _ROOT[self.layout.format], _metadata(self.layout, complete=True))
        return open_volume(self.path)


def create_volume(
    path: str | os.PathLike[str],
    grid: Grid,
    dtype: DTypeLike,
    *,
    channels: int = 1,
    kind: Kind = "image",
    orientation: str | None = None,
    chunk: Sequence[int] | None = None,
    levels: int | None = None,
    channel_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> VolumeWriter:
    """Start a chunked volume, or go on with an identical one that was not finished.

    Parameters
    ----------
    path
        A folder named ``*.zarr`` (OME-Zarr 0.5) or ``precomputed://`` and a folder; an object store's address too.
    grid
        Grid of the finest level.
    dtype
        Type of a voxel.
    channels, channel_names
        Number of channels, and their names if there are any.
    kind
        Whether the levels are averages or most frequent ids.
    orientation
        Letters of the grid's physical axes z, y, x.
    chunk
        Voxels per chunk, z y x; by default (64, 128, 128), and 64 each way for precomputed.
    levels
        Number of levels; by default until no axis is longer than 64 voxels (see `pyramid_grids`).
    overwrite
        Remove a CloudReg volume that stands at the path, finished or not.

    Raises
    ------
    InputError
        If the path holds anything else, its name is of no chunked format, or the disk is too small.
    """
    layout = _layout(path, grid, dtype, channels, kind, orientation, chunk, levels, channel_names)
    if overwrite:
        remove_volume(layout.path)
    metadata = _metadata(layout, complete=False)
    root = _ROOT[layout.format]
    found = read_json(layout.path, root)
    if found is None:
        _require_empty(layout.path)
        if not is_remote(layout.path):
            require_free_space(layout.path, layout.bytes, f"volume {layout.path}")
        if not write_new_json(layout.path, root, metadata):
            raise _occupied(layout, "one that another program began at this moment")
    elif found != metadata:
        raise _occupied(layout, "a finished volume" if found == _metadata(layout, complete=True) else "another one")
    try:
        return VolumeWriter(layout, _arrays(layout))
    except InputError as error:  # the levels' arrays know their types and chunks, which the group does not
        raise _occupied(layout, "another one") from error


def remove_volume(path: str) -> None:
    """Remove a volume that CloudReg wrote, if there is one.

    Raises
    ------
    InputError
        If the path holds anything else.
    """
    address = plain_address(path.removeprefix(PREFIX))
    folder = None if is_remote(address) else Path(address)
    if folder is not None and not folder.exists():
        return
    roots = {} if folder is not None and not folder.is_dir() else read_jsons(address, ROOTS)
    if not any(KEY in found.get("attributes", found) for found in roots.values()):
        if not roots and (folder is None or (folder.is_dir() and not any(folder.iterdir()))):
            return
        raise InputError(f"expected a volume written by CloudReg at {address}, got something else: remove it yourself")
    if folder is None:
        remove_folder(address)
    else:
        shutil.rmtree(folder)


def reopen_volume(path: str | os.PathLike[str]) -> VolumeWriter:
    """Take up a volume that CloudReg wrote, to add the levels that it lacks; it counts as unfinished until then.

    Raises
    ------
    InputError
        If the path holds no chunked volume that CloudReg wrote.
    """
    volume = open_volume(path, allow_incomplete=True)
    folder = volume.path.removeprefix(PREFIX)
    root = _ROOT.get(volume.format)
    found = None if root is None else read_json(folder, root)
    if found is None or KEY not in found.get("attributes", found):
        raise InputError(f"expected an OME-Zarr 0.5 or precomputed volume that CloudReg wrote, got {path}: convert it")
    layout = Layout(
        path=folder,
        format="precomputed" if volume.format == "precomputed" else "ome-zarr",
        levels=volume.levels if len(volume.levels) > 1 else pyramid_grids(volume.grid),
        dtype=volume.dtype,
        channels=volume.channels,
        kind=volume.kind,
        chunk=volume.chunk,
        orientation=volume.orientation,
        channel_names=volume.channel_names,
    )
    write_json(folder, _ROOT[layout.format], _metadata(layout, complete=False))
    return VolumeWriter(layout, _arrays(layout))


def _layout(
    path: str | os.PathLike[str],
    grid: Grid,
    dtype: DTypeLike,
    channels: int,
    kind: Kind,
    orientation: str | None,
    chunk: Sequence[int] | None,
    levels: int | None,
    channel_names: Sequence[str] | None,
) -> Layout:
    text = os.fspath(path)
    folder = plain_address(text.removeprefix(PREFIX))
    precomputed = text.startswith(PREFIX)
    if not precomputed and not folder.endswith(".zarr"):
        raise InputError(f"expected a path that ends in .ome.zarr or starts with precomputed://, got {text}")
    if channel_names is not None and len(channel_names) != channels:
        raise InputError(f"expected a name for each of {channels} channels of {text}, got {len(channel_names)}")
    if precomputed and np.dtype(dtype).name in ("int64", "float64"):
        raise InputError(
            f"expected a type that precomputed has, got {np.dtype(dtype).name} for {text}: write .ome.zarr"
        )
    z, y, x = chunk or ((64, 64, 64) if precomputed else (64, 128, 128))
    return Layout(
        path=folder,
        format="precomputed" if precomputed else "ome-zarr",
        levels=pyramid_grids(grid, levels),
        dtype=held_dtype(dtype, text),
        channels=channels,
        kind=kind,
        chunk=(int(z), int(y), int(x)),
        orientation=None if orientation is None else parse_orientation(orientation),
        channel_names=None if channel_names is None else tuple(channel_names),
    )


def _metadata(layout: Layout, *, complete: bool) -> Json:
    if layout.format == "precomputed":
        return precomputed_metadata(layout, complete=complete)
    return ome_zarr_metadata(layout, complete=complete)


def _arrays(layout: Layout) -> tuple[StoredArray, ...]:
    arrays = precomputed_arrays(layout) if layout.format == "precomputed" else ome_zarr_arrays(layout)
    for array in arrays:
        array.open()
    return arrays


def _occupied(layout: Layout, by: str) -> InputError:
    return InputError(
        f"expected nothing or the same unfinished volume at {layout.path}, got {by}: choose a new place or remove it"
    )


def _require_empty(path: str) -> None:
    if is_remote(path):
        require_bucket(path)
        others = read_jsons(path, ROOTS)
        if others:
            raise InputError(
                f"expected nothing at {path}, got another volume's {', '.join(others)}: choose a new place or remove it"
            )
        return
    folder = Path(path)
    # A run killed while it wrote the very first file leaves that file's lock.
    if folder.exists() and not (folder.is_dir() and all(p.name.endswith(".__lock") for p in folder.iterdir())):
        raise InputError(f"expected nothing at {folder}, got something that is no volume: choose a new place")
