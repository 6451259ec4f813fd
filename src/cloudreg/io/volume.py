"""One value object for every volume, wherever and however it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import Kind
from cloudreg.space import Box, Grid


class Source(Protocol):
    """Where voxels come from. Picklable, and cheap to make: it opens its files at the first read."""

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return the voxels of a box that lies inside the level, shape (c, z, y, x)."""
        ...


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on disk: what it is, where its voxels lie, and a way to read boxes of it.

    Made by `open_volume`; picklable, so that a worker reopens it from its path.

    Parameters
    ----------
    path
        As given to `open_volume`, absolute where it is local.
    format
        ``"ome-zarr"``, ``"zarr"``, ``"n5"``, ``"precomputed"``, ``"tiff"``, ``"tiff-series"``, ``"nifti"`` or
        ``"nrrd"``.
    kind
        ``"image"`` (brightness, averaged when it is downsampled) or ``"labels"`` (ids, never averaged).
    dtype, channels
        Type of a voxel; number of channels.
    levels
        Grid of each resolution level, finest first.
    chunk
        Voxels that are stored, hence read, together at the finest level, z y x.
    orientation
        BrainGlobe letters of the *physical* axes z, y, x, or None where they are not known.
    channel_names
        Names of the channels, where the file has them.
    notes
        What had to be supposed in reading the file, for `describe`.
    """

    path: str
    format: str
    kind: Kind
    dtype: np.dtype[Any]
    channels: int
    levels: tuple[Grid, ...]
    chunk: tuple[int, int, int]
    source: Source = field(repr=False)
    orientation: str | None = None
    channel_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """Grid of the finest level."""
        return self.levels[0]

    @property
    def has_own_frame(self) -> bool:
        """Whether the file places the volume in space.

        A file with no origin, or with origin zero (which is what most programs write when they know none), gets
        its first voxel's centre at zero, and two of these of different voxel sizes share no known point.
        """
        return bool(np.any(self.grid.origin_um != 0))

    def read(self, box: Box | None = None, *, level: int = 0, channel: int | None = 0) -> NDArray[Any]:
        """Read a box of voxels.

        Parameters
        ----------
        box
            In voxels of the level; the whole level by default.
        level
            0 is the finest.
        channel
            Channel to read, or None for all.

        Returns
        -------
        ndarray
            C-contiguous, type ``dtype``; shape (z, y, x), or (c, z, y, x) for ``channel=None``.

        Raises
        ------
        InputError
            If there is no such level or channel, the box reaches outside, or the file is damaged.
        """
        if not 0 <= level < len(self.levels):
            raise InputError(f"{self.path} has levels 0 to {len(self.levels) - 1}; level {level} was asked for")
        if channel is not None:
            self.require_channel(channel)
        whole = Box.whole(self.levels[level].shape)
        box = whole if box is None else box
        if box.intersection(whole) != box:
            raise InputError(f"{self.path} has shape {whole.shape} at level {level}; box {box} reaches outside")
        channels = slice(0, self.channels) if channel is None else slice(channel, channel + 1)
        array = np.ascontiguousarray(self.source.read(level, channels, box), dtype=self.dtype)
        return array if channel is None else array[0]

    def require_channel(self, channel: int) -> None:
        """Refuse a channel that there is none of."""
        if 0 <= channel < self.channels:
            return
        one = self.channels == 1
        there = "1 channel, number 0" if one else f"{self.channels} channels, numbers 0 to {self.channels - 1}"
        raise InputError(f"{self.path} has {there}; channel {channel} was asked for")

    def level_near(self, voxel_um: float) -> int:
        """Return the coarsest level that is not coarser than ``voxel_um``, else 0.

        An axis that is coarser than that already at the finest level does not count.

        Raises
        ------
        InputError
            If it is no length.
        """
        if not 0 < voxel_um < np.inf:
            raise InputError(f"expected a voxel size in micrometres above 0 for {self.path}, got {voxel_um:g}")
        allowed = np.maximum(voxel_um, self.grid.voxel_size_um) * (1 + 1e-6)
        fitting = [i for i, grid in enumerate(self.levels) if (np.asarray(grid.voxel_size_um) <= allowed).all()]
        return max(fitting, default=0)

    def placed(self, affine: NDArray[np.float64]) -> Volume:
        """Return the volume with another 4 x 4 affine for its finest level; the coarser ones move along."""
        move = affine @ np.linalg.inv(self.grid.affine)
        return replace(self, levels=tuple(Grid(grid.shape, move @ grid.affine) for grid in self.levels))
