"""What every raw acquisition offers: a grid of overlapping tiles, each a stack of planes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.remote import RemotePath
from cloudreg.tiles.damage import note_damage

Place = Path | RemotePath
"""A file or folder, here or on an object store."""

Intervals = tuple[tuple[int, int], ...]
"""Half-open ranges of planes, ascending, with a gap between any two."""


@dataclass(frozen=True)
class Tile:
    """One position of the stage, with all its planes.

    Parameters
    ----------
    name
        Of its folder.
    row, column
        Place in the grid, from the top left corner.
    planes_by_channel
        The planes that exist, by channel.
    """

    name: str
    row: int
    column: int
    planes_by_channel: Mapping[int, Intervals] = field(hash=False)

    @property
    def planes(self) -> Intervals:
        """The planes that exist in every channel."""
        common = None
        for intervals in self.planes_by_channel.values():
            present = {plane for start, stop in intervals for plane in range(start, stop)}
            common = present if common is None else common & present
        return to_intervals(common or ())


@dataclass(frozen=True, eq=False)
class Acquisition(ABC):
    """A raw acquisition, opened: what it is, and how its planes are read.

    Picklable, and safe to read from several threads. Nothing in it is ever written to.

    Parameters
    ----------
    path
        Folder of the acquisition.
    rows, columns
        Size of the stage grid, cells that were not scanned included.
    tile_shape
        Planes, height and width of every tile in pixels.
    voxel_size_um
        z, y, x.
    overlap
        Nominal overlap of neighbours as a fraction of the tile's height and of its width (vertical, horizontal).
    channels
        Numbers of the channels that have planes, ascending.
    dtype
        Of the stored pixels.
    tiles
        The scanned tiles, row by row.
    objective
        What the microscope calls its lens; empty where it doesn't say.
    planes_folder
        The folder that holds the tiles' folders.
    strict
        Whether a plane that can't be read is an error; else it is taken for lost, see `cloudreg.tiles.damage`.
    """

    path: Place
    rows: int
    columns: int
    tile_shape: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    overlap: tuple[float, float]
    channels: tuple[int, ...]
    dtype: np.dtype[np.generic]
    tiles: tuple[Tile, ...]
    objective: str
    planes_folder: Place
    strict: bool = field(default=False, kw_only=True)

    @property
    def planes_together(self) -> int:
        """How many planes are stored, hence best read, together."""
        return 1

    @property
    def volume_format(self) -> str:
        """TeraStitcher's name for how tiles are stored."""
        return "TiledXY|2Dseries"

    def project_attributes(self, tile: Tile, channel: int) -> dict[str, str]:
        """Return what a project says of a tile beside the usual."""
        return {}

    @property
    def pitch_px(self) -> tuple[float, float]:
        """Nominal distance of neighbouring tiles, vertical and horizontal, in pixels.

        The stage moves by a fraction of the field of view, a length: the number is not rounded to whole pixels.
        """
        _, height, width = self.tile_shape
        return height * (1 - self.overlap[0]), width * (1 - self.overlap[1])

    def nominal_px(self, tile: Tile) -> tuple[float, float, float]:
        """Return where the stage meant to put a tile's first pixel (z, y, x), in pixels from cell (0, 0)."""
        vertical, horizontal = self.pitch_px
        return 0.0, tile.row * vertical, tile.column * horizontal

    def planes(self, tile: Tile, channel: int) -> Intervals:
        """Return the planes of a tile that exist.

        Raises
        ------
        InputError
            If there is no such channel.
        """
        self.require_channel(channel)
        return tile.planes_by_channel.get(channel, ())

    def lost_planes(self, tile: Tile, channel: int) -> tuple[int, ...]:
        """Return the numbers of the planes that should exist and don't; all of them if the channel has none here."""
        present = {plane for start, stop in self.planes(tile, channel) for plane in range(start, stop)}
        return tuple(plane for plane in range(self.tile_shape[0]) if plane not in present)

    def require_channel(self, channel: int) -> None:
        """Raise an `InputError` if there is no such channel."""
        if channel not in self.channels:
            known = ", ".join(str(c) for c in self.channels)
            raise InputError(f"{self.path} has no channel {channel}: choose one of {known}")

    def read(
        self,
        tile: Tile,
        channel: int,
        start: int,
        stop: int,
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[np.generic]:
        """Read planes ``start`` to ``stop`` of a tile, or a part of each.

        Parameters
        ----------
        tile
            One of ``tiles``.
        channel
            One of ``channels``.
        start, stop
            Half-open range of planes within the tile's depth.
        rows, columns
            Part of each plane, with step 1; whole planes by default.

        Returns
        -------
        array
            (planes, rows, columns) of ``dtype``; lost planes are zeros, and so are those that can't be decoded or have
            another size or type than the rest.

        Raises
        ------
        InputError
            If the acquisition is strict and a plane can't be read; names the file.
        """
        depth, height, width = self.tile_shape
        if not 0 <= start <= stop <= depth:
            raise ValueError(f"planes {start} to {stop} are not within 0 to {depth}")
        rows, columns = slice(*rows.indices(height)), slice(*columns.indices(width))
        shape = (stop - start, max(0, rows.stop - rows.start), max(0, columns.stop - columns.start))
        pixels = np.zeros(shape, self.dtype)
        if not pixels.size:
            return pixels
        step = max(1, self.planes_together)
        for first, end in self.planes(tile, channel):
            low, high = max(first, start), min(end, stop)
            for plane in range(low, high, step):
                above = min(plane + step, high)
                self._read_or_lose(tile, channel, plane, above, rows, columns, pixels[plane - start : above - start])
        return pixels

    def _read_or_lose(
        self, tile: Tile, channel: int, start: int, stop: int, rows: slice, columns: slice, out: NDArray[np.generic]
    ) -> None:
        try:
            self._fill(tile, channel, start, stop, rows, columns, out)
        except InputError as error:
            if self.strict:
                raise
            out[:] = 0
            if stop - start == 1:
                note_damage(f"{tile.name} plane {start} of channel {channel}", str(error))
                return
            # Those beside it may be sound.
            for plane in range(start, stop):
                part = out[plane - start : plane - start + 1]
                self._read_or_lose(tile, channel, plane, plane + 1, rows, columns, part)

    @abstractmethod
    def _fill(
        self, tile: Tile, channel: int, start: int, stop: int, rows: slice, columns: slice, out: NDArray[np.generic]
    ) -> None:
        """Read planes that exist into an array of zeros, (planes, rows, columns).

        Raises
        ------
        InputError
            If a plane is damaged, or of another kind than the rest.
        """

    @abstractmethod
    def fingerprint(self, channels: Iterable[int]) -> str:
        """Return a hash that changes when the raw data of these channels change.

        It covers names, sizes and times of the files and the description of the acquisition; no pixel is read.
        """

    @abstractmethod
    def file_pattern(self, channel: int) -> str:
        """Return a regular expression that matches the whole name of each file of a channel, and of no other."""


def to_intervals(planes: Iterable[int]) -> Intervals:
    """Return the half-open ranges that make up a set of plane numbers.

    Examples
    --------
    >>> to_intervals([0, 1, 2, 5])
    ((0, 3), (5, 6))
    """
    intervals: list[tuple[int, int]] = []
    for plane in sorted(set(planes)):
        if intervals and intervals[-1][1] == plane:
            intervals[-1] = (intervals[-1][0], plane + 1)
        else:
            intervals.append((plane, plane + 1))
    return tuple(intervals)
