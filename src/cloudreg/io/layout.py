"""What a chunked volume that CloudReg writes will be, before a voxel of it exists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cloudreg.io.dtypes import Kind
from cloudreg.space import Grid

KEY = "cloudreg"
"""Name of our own part of a volume's metadata."""
_SHARD_BYTES = 2**24
"""Raw bytes of a shard at most: large enough for 60,000 objects a terabyte, small enough for many in memory."""
_LARGE_BYTES = 2**30
"""Volumes of more raw bytes at the finest level are sharded unless asked otherwise."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything that decides a chunked volume's metadata.

    Parameters
    ----------
    path
        Folder or address, without ``precomputed://``.
    levels
        Grid of each level, finest first.
    chunk
        Voxels per chunk, z y x; cut to the level's shape where that is smaller and there are no shards.
    sharded
        Whether many chunks share an object.
    """

    path: str
    format: Literal["ome-zarr", "precomputed"]
    levels: tuple[Grid, ...]
    dtype: np.dtype[Any]
    channels: int
    kind: Kind
    chunk: tuple[int, int, int]
    orientation: str | None
    channel_names: tuple[str, ...] | None
    sharded: bool = False

    def chunk_of(self, level: int) -> tuple[int, int, int]:
        """Voxels per chunk of a level, z y x."""
        if self.sharded:
            return self.chunk
        z, y, x = (min(c, n) for c, n in zip(self.chunk, self.levels[level].shape, strict=True))
        return z, y, x

    def shard_of(self, level: int) -> tuple[int, int, int]:
        """Voxels per object of a level, z y x."""
        if not self.sharded:
            return self.chunk_of(level)
        z, y, x = (c << b for c, b in zip(self.chunk, self.shard_bits(level), strict=True))
        return z, y, x

    def shard_bits(self, level: int) -> tuple[int, int, int]:
        """How often a chunk is doubled along z, y, x to make a shard: x, y and z in turn, while there are more chunks.

        This is the order of the bits in precomputed's Morton code of a chunk, so that its shards are boxes.
        """
        bits = [0, 0, 0]
        room = _SHARD_BYTES // (int(np.prod(self.chunk)) * self.dtype.itemsize)
        most = self.grid_bits(level)
        while (growing := [a for a in (2, 1, 0) if bits[a] < most[a]]) and 2 << sum(bits) <= room:
            bits[min(growing, key=lambda a: (bits[a], -a))] += 1
        return bits[0], bits[1], bits[2]

    def grid_bits(self, level: int) -> tuple[int, int, int]:
        """How many bits the number of a chunk has along z, y, x."""
        counts = (-(-n // c) for n, c in zip(self.levels[level].shape, self.chunk, strict=True))
        z, y, x = ((count - 1).bit_length() for count in counts)
        return z, y, x

    def objects_of(self, level: int) -> int:
        """Return how many objects a level has at most (those of zeros are not written)."""
        shape = self.levels[level].shape
        channels = self.channels if self.format == "ome-zarr" else 1
        return channels * math.prod(-(-n // s) for n, s in zip(shape, self.shard_of(level), strict=True))

    @property
    def bytes(self) -> int:
        """Size of all levels before compression."""
        return sum(int(np.prod(g.shape)) for g in self.levels) * self.channels * self.dtype.itemsize

    def own_metadata(self, *, complete: bool) -> dict[str, Any]:
        """Return what no format has a field for."""
        values: dict[str, Any] = {"kind": self.kind, "orientation": self.orientation, "complete": complete}
        if self.channel_names is not None:
            values["channel_names"] = list(self.channel_names)
        return values


def is_large(grid: Grid, dtype: np.dtype[Any], channels: int) -> bool:
    """Whether a volume has so many chunks that they had better share objects."""
    return math.prod(grid.shape) * dtype.itemsize * channels > _LARGE_BYTES
