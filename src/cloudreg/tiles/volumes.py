"""Acquisitions whose tiles are volumes: 3D TIFF, OME-TIFF, OME-Zarr, or folders of planes, here or on an object store.

Each tile is read where it lies, in the parts that are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.io.volume import Volume
from cloudreg.space import Box
from cloudreg.tiles.acquisition import Acquisition, Place, Tile, to_intervals
from cloudreg.tiles.grids import arrange


@dataclass(frozen=True)
class Block:
    """Part of a tile's depth: one channel of one volume.

    Parameters
    ----------
    start
        The tile's plane that is the volume's first.
    volume
        What holds it.
    channel
        Of the volume.
    """

    start: int
    volume: Volume
    channel: int

    @property
    def stop(self) -> int:
        """The plane after the last."""
        return self.start + self.volume.grid.shape[0]


@dataclass(frozen=True)
class PlacedTile:
    """A tile before it has a place in the grid.

    Parameters
    ----------
    name
        For messages, unique.
    position_px
        Of its first pixel, z y x.
    blocks
        By channel, from the first plane to the last.
    """

    name: str
    position_px: tuple[float, float, float]
    blocks: Mapping[int, tuple[Block, ...]] = field(hash=False)


@dataclass(frozen=True, eq=False)
class VolumeAcquisition(Acquisition):
    """An acquisition of `Block`; made by `from_volumes`."""

    _blocks: Mapping[tuple[str, int], tuple[Block, ...]] = field(repr=False)
    _positions: Mapping[str, tuple[float, float, float]] = field(repr=False)

    @property
    def planes_together(self) -> int:
        """How many planes the volumes store together."""
        return min(max(b.volume.chunk[0] for blocks in self._blocks.values() for b in blocks), 64)

    @property
    def volume_format(self) -> str:
        """TeraStitcher's name for how tiles are stored."""
        return "TiledXY|3Dseries"

    def project_attributes(self, tile: Tile, channel: int) -> dict[str, str]:
        """Return what TeraStitcher wants to know of a tile's files."""
        blocks = self._blocks.get((tile.name, channel), ())
        return {
            "N_BLOCKS": str(len(blocks)),
            "BLOCK_SIZES": ",".join(str(block.stop - block.start) for block in blocks),
            "BLOCKS_ABS_D": ",".join(str(block.start) for block in blocks),
        }

    def nominal_px(self, tile: Tile) -> tuple[float, float, float]:
        """Return where the tile's first pixel was said to be (z, y, x), in pixels."""
        return self._positions[tile.name]

    def _fill(
        self, tile: Tile, channel: int, start: int, stop: int, rows: slice, columns: slice, out: NDArray[np.generic]
    ) -> None:
        for block in self._blocks[tile.name, channel]:
            low, high = max(start, block.start), min(stop, block.stop)
            if low < high:
                box = Box((low - block.start, rows.start, columns.start), (high - block.start, rows.stop, columns.stop))
                out[low - start : high - start] = block.volume.read(box, channel=block.channel)

    def fingerprint(self, channels: Iterable[int]) -> str:
        """Return a hash of the positions and of the volumes' names, shapes, and, on disks, sizes and times."""
        digest = hashlib.sha256(repr((self.voxel_size_um, sorted(self._positions.items()))).encode())
        for (name, channel), blocks in sorted(self._blocks.items()):
            if channel not in set(channels):
                continue
            for block in blocks:
                path = Path(block.volume.path)
                age = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else ()
                digest.update(repr((name, channel, block.start, str(path), block.volume.grid.shape, age)).encode())
        return digest.hexdigest()

    def file_pattern(self, channel: int) -> str:
        """Return a regular expression for all files: here a channel isn't told by a file's name."""
        self.require_channel(channel)
        return ".*"


def from_volumes(
    path: Place,
    folder: Place,
    tiles: Sequence[PlacedTile],
    voxel_size_um: Sequence[float],
    *,
    strict: bool = False,
    grid: tuple[int, int] | None = None,
    cells: Sequence[tuple[int, int]] | None = None,
    overlap: tuple[float, float] | None = None,
) -> VolumeAcquisition:
    """Make an acquisition of tiles that are volumes.

    Parameters
    ----------
    path, folder
        Of the acquisition, and of its tiles.
    tiles
        At least one.
    voxel_size_um
        z y x.
    strict
        See `Acquisition`.
    grid, cells, overlap
        Rows and columns, those of each tile, and the overlap of neighbours; found from the positions by default.

    Raises
    ------
    InputError
        If tiles have other sizes or types than the rest, or are at the same place. Tiles with fewer planes than the
        rest have lost the last ones.
    """
    first = next(iter(tiles[0].blocks.values()))[0].volume
    _, height, width = first.grid.shape
    for tile in tiles:
        for block in (b for blocks in tile.blocks.values() for b in blocks):
            volume = block.volume
            if (volume.grid.shape[1:], volume.dtype) != ((height, width), first.dtype):
                raise InputError(
                    f"expected tiles of {height} x {width} pixels of {first.dtype} as {first.path}, got "
                    f"{volume.grid.shape[1]} x {volume.grid.shape[2]} of {volume.dtype} in {volume.path}: "
                    "all tiles of an acquisition must be alike"
                )
    if first.dtype not in (np.uint8, np.uint16):
        raise InputError(f"expected tiles of 8 or 16 bit unsigned integers, got {first.dtype} in {first.path}")
    names = [tile.name for tile in tiles]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} names the tile {twice} twice: remove one of them")
    positions = np.array([tile.position_px for tile in tiles])
    positions -= positions.min(axis=0)
    if cells is None:
        cells, found = arrange(positions, height, width, names)
        overlap = found if overlap is None else overlap
    depth = max(b.stop for tile in tiles for blocks in tile.blocks.values() for b in blocks)
    made = {
        tile.name: Tile(
            tile.name,
            *cell,
            {c: to_intervals(p for b in blocks for p in range(b.start, b.stop)) for c, blocks in tile.blocks.items()},
        )
        for tile, cell in zip(tiles, cells, strict=True)
    }
    rows, columns = grid or (max(r for r, _ in cells) + 1, max(c for _, c in cells) + 1)
    z, y, x = (float(v) for v in voxel_size_um)
    acquisition = VolumeAcquisition(
        path=path,
        rows=rows,
        columns=columns,
        tile_shape=(depth, height, width),
        voxel_size_um=(z, y, x),
        overlap=overlap or (0.1, 0.1),
        channels=tuple(sorted({c for tile in tiles for c in tile.blocks})),
        dtype=first.dtype,
        tiles=tuple(sorted(made.values(), key=lambda tile: (tile.row, tile.column))),
        objective="",
        planes_folder=folder,
        strict=strict,
        _blocks={(tile.name, c): blocks for tile in tiles for c, blocks in tile.blocks.items()},
        _positions=dict(zip(names, [(p[0], p[1], p[2]) for p in positions.tolist()], strict=True)),
    )
    for scanned in acquisition.tiles:
        for channel in acquisition.channels:
            lost = acquisition.lost_planes(scanned, channel)
            if lost:
                say(f"channel {channel}: {len(lost)} of {depth} planes of {scanned.name} are missing")
    return acquisition


def blocks_of(volume: Volume) -> dict[int, tuple[Block, ...]]:
    """Return every channel of a volume that is a whole tile."""
    return {c: (Block(0, volume, c),) for c in range(volume.channels)}


def with_channels(tile: PlacedTile, more: Mapping[int, tuple[Block, ...]]) -> PlacedTile:
    """Return a tile with further channels."""
    return replace(tile, blocks={**tile.blocks, **more})
