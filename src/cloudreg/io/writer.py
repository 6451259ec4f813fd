"""A chunked volume that is being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.io.chunked import ChunkedSource, Pending, StoredArray
from cloudreg.io.dtypes import Kind
from cloudreg.io.layout import Layout
from cloudreg.io.objects import Json, write_json
from cloudreg.io.ome_zarr import ome_zarr_arrays, ome_zarr_metadata
from cloudreg.io.opening import open_volume
from cloudreg.io.precomputed import PREFIX, precomputed_arrays, precomputed_metadata
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

ROOT = {"ome-zarr": "zarr.json", "precomputed": "info"}
"""The file of each format that describes the whole volume."""


@dataclass(frozen=True, eq=False)
class VolumeWriter:
    """A volume that is being written; picklable, so that workers can write its blocks.

    Blocks that are whole multiples of `block_shape` may be written at the same time and in any order: the bytes on
    disk do not depend on it.

    Parameters
    ----------
    layout, arrays
        What the volume will be, and where its levels are stored.
    is_new
        Whether nothing of what is to be written was there before.
    """

    layout: Layout
    arrays: tuple[StoredArray, ...]
    is_new: bool = False

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
        return self.layout.shard_of(level)

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
        """Write a box of voxels; returns when it is on disk, see `begin_write`."""
        self.begin_write(box, array, level=level, channel=channel).wait()

    def begin_write(self, box: Box, array: NDArray[Any], *, level: int = 0, channel: int | None = 0) -> Pending:
        """Begin to write a box of voxels, which must not change until that is done.

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
        return self.arrays[level].begin_write(channels, box, stacked)

    def complete(self) -> Volume:
        """Mark the volume complete and return it; all blocks of all levels must be written."""
        write_json(self.layout.path, ROOT[self.layout.format], metadata_of(self.layout, complete=True))
        return open_volume(self.path)


def metadata_of(layout: Layout, *, complete: bool) -> Json:
    """Return the content of a volume's root file."""
    if layout.format == "precomputed":
        return precomputed_metadata(layout, complete=complete)
    return ome_zarr_metadata(layout, complete=complete)


def opened_writer(layout: Layout, *, is_new: bool = False) -> VolumeWriter:
    """Return a writer whose levels' arrays exist; the root file must."""
    arrays = precomputed_arrays(layout) if layout.format == "precomputed" else ome_zarr_arrays(layout)
    for array in arrays:
        array.open()
    return VolumeWriter(layout, arrays, is_new)
