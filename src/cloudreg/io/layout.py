"""What a chunked volume that CloudReg writes will be, before a voxel of it exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cloudreg.io.dtypes import Kind
from cloudreg.space import Grid

KEY = "cloudreg"
"""Name of our own part of a volume's metadata."""


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
        Voxels per chunk, z y x; cut to the level's shape where that is smaller.
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

    def chunk_of(self, level: int) -> tuple[int, int, int]:
        """Voxels per chunk of a level, z y x."""
        z, y, x = (min(c, n) for c, n in zip(self.chunk, self.levels[level].shape, strict=True))
        return z, y, x

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
