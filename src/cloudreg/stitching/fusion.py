"""All tiles blended into one volume, straight into its chunks.

A voxel of the result is the weighted mean of the tiles that saw it. A tile's weight falls to its edges over the width
of an overlap; where a plane was lost, or a pixel is 0 (no camera sees nothing at all), it has none. Tiles are moved by
whole pixels, so that their values stay as sharp as they are: each plane lies within half a pixel of its measured
position, see `cloudreg.stitching.places`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import Volume, build_pyramid, create_volume, open_volume
from cloudreg.io.convert import new_tiff
from cloudreg.io.writing import writable_format
from cloudreg.settings import FusionSettings
from cloudreg.space import Box, Grid, split
from cloudreg.stitching.content import content_part, content_weights
from cloudreg.stitching.exposure import Exposure, balance_exposure
from cloudreg.stitching.places import TilePlace, tile_places
from cloudreg.tiles import Acquisition, Project, Tile
from cloudreg.tiles.damage import damaged_planes, remember
from cloudreg.tiles.read_ahead import ReadAhead

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Array = NDArray[Any]
Blending = Literal["cosine", "linear", "content"]

# A TIFF is written in blocks of whole planes, or of so many rows.
_TIFF_UNIT = (1, 256, 1 << 30)


def fuse(
    acquisition: Acquisition,
    channel: int,
    project: Project,
    shading: Shading | None,
    path: str | os.PathLike[str],
    settings: FusionSettings,
    engine: Engine,
    ledger: Ledger | None = None,
    *,
    orientation: str | None = None,
) -> Volume:
    """Blend the placed tiles of a channel into a new volume with its pyramid.

    Parameters
    ----------
    acquisition, channel
        What to read.
    project
        Where the tiles lie.
    shading
        Applied to each plane as it is read, or None.
    path
        New chunked volume, or one of the same description that was not finished; or a new TIFF, or folder of TIFF
        planes, which have no pyramid.
    settings
        Blending, depth, chunks, and whether exposures are balanced.
    engine, ledger
        Run the blocks, and remember which are done.
    orientation
        Letters of the volume's axes, to be stored with it.

    Returns
    -------
    Volume
        Of the acquisition's type, rounded and clipped to 1 or more; 0 where nothing was observed. The bytes don't
        depend on workers, memory or having been stopped.

    Raises
    ------
    InputError
        If the project is of another acquisition, the path holds something else, or the disk is too small.
    """
    acquisition.require_channel(channel)
    places = tile_places(acquisition, project)
    grid = canvas_grid(places, acquisition.voxel_size_um, settings.depth)
    exposures: tuple[Exposure, ...] = ()
    if settings.balance_exposure:
        exposures = balance_exposure(acquisition, channel, shading, places, engine)

    def blocks(writer: Writes, unit: Sequence[int]) -> None:
        """Fuse and write all blocks that are not done."""
        task = FuseBlock(
            acquisition,
            channel,
            shading,
            tuple(places),
            _origin(places, settings.depth),
            settings.blending,
            writer,
            exposures,
        )
        memory = engine.memory_per_block_bytes
        content = settings.blending == "content"
        block = block_shape(grid.shape, unit, acquisition, memory, engine.workers, content=content)
        for damaged in engine.run(task, split(grid.shape, block), label=f"fuse channel {channel}", ledger=ledger):
            remember(damaged or ())

    form = writable_format(path)
    if form in ("tiff", "tiff-series"):
        with new_tiff(Path(path), grid, acquisition.dtype, ledger) as files:
            blocks(files, [min(n, u) for n, u in zip(grid.shape, _TIFF_UNIT, strict=True)])
        return open_volume(path)
    if form != "chunked":
        raise InputError(f"expected .ome.zarr, precomputed:// or TIFF for a fused volume, got {path}: convert it then")
    writer = create_volume(path, grid, acquisition.dtype, orientation=orientation, chunk=settings.chunk, ledger=ledger)
    blocks(writer, writer.block_shape())
    build_pyramid(writer, engine=engine, ledger=ledger)
    return writer.complete()


def canvas_grid(
    places: Sequence[TilePlace], voxel_size_um: Sequence[float], depth: Literal["union", "intersection"] = "union"
) -> Grid:
    """Return the grid that holds all tiles.

    Its micrometres are the stage's: pixel (0, 0, 0) of a tile that lies at position 0 has its centre at 0, wherever
    the volume's own first voxel is.

    Parameters
    ----------
    places
        Where the tiles lie.
    voxel_size_um
        z y x.
    depth
        All planes, or only those that every tile reaches.

    Raises
    ------
    InputError
        If no plane is common to all tiles and only such are wanted.
    """
    origin = _origin(places, depth)
    stops = np.array([place.box.stop for place in places])
    end = stops.max(axis=0)
    if depth == "intersection":
        end[0] = stops[:, 0].min()
    shape = end - origin
    if (shape < 1).any():
        raise InputError("the tiles have no plane in common: fuse them with depth union")
    return Grid.from_spacing(shape.tolist(), voxel_size_um, (np.asarray(origin) * voxel_size_um).tolist())


def block_shape(
    shape: Sequence[int],
    smallest: Sequence[int],
    acquisition: Acquisition,
    memory_bytes: int,
    workers: int = 1,
    *,
    content: bool = False,
) -> tuple[int, int, int]:
    """Return the largest block that fits in memory: whole planes if they do, so that each is read once.

    Otherwise the longer side is halved; the tiles on a cut are read again for each block, but only the rows and
    columns that lie in it. It is halved as well while there are too few blocks for all workers to have several, and it
    is longer than two tiles; in rows, of which those of a block are read alone, also while some worker has none.

    Parameters
    ----------
    shape
        Of the canvas, z y x.
    smallest
        What may be written independently; blocks are multiples of it.
    memory_bytes
        What one block may use, see `block_bytes`; the smallest block is returned even if it uses more.
    workers
        How many are to have several blocks.
    content
        Whether tiles are weighed by their content.
    """
    side = 2 * max(acquisition.tile_shape[1:])
    units = [math.ceil(n / s) for n, s in zip(shape, smallest, strict=True)]
    counts = [1, units[1], units[2]]

    def blocks() -> int:
        return math.prod(math.ceil(u / c) for u, c in zip(units, counts, strict=True))

    def too_large(block: list[int]) -> bool:
        return block_bytes(block, acquisition, content=content) > memory_bytes or (
            blocks() < 2 * workers and max(block[1:]) > side
        )

    while too_large(block := [c * s for c, s in zip(counts, smallest, strict=True)]) and max(counts) > 1:
        axis = 1 if counts[2] == 1 or (counts[1] > 1 and block[1] >= block[2]) else 2
        counts[axis] = math.ceil(counts[axis] / 2)
    while blocks() < workers and counts[1] > 1:
        counts[1] = math.ceil(counts[1] / 2)
    z, y, x = (min(c * s, n) for c, s, n in zip(counts, smallest, shape, strict=True))
    return z, y, x


def block_bytes(block: Sequence[int], acquisition: Acquisition, *, content: bool = False) -> int:
    """Most that fusing one block holds: block and copy in the writer, two sums, a raw plane, its content if wanted."""
    z, y, x = block
    _, height, width = acquisition.tile_shape
    pixel = acquisition.dtype.itemsize
    # Neighbours overlap: their planes that are read together are more than the block's.
    ahead = 0 if acquisition.planes_together == 1 else 2 * acquisition.planes_together * pixel
    return y * x * (z * 2 * pixel + 8 + ahead) + height * width * (2 * pixel + (30 if content else 0))


def edge_weights(length: int, overlap: float, blending: Blending) -> NDArray[np.float32]:
    """Return a tile's weight along one axis: above 0, rising over ``overlap`` pixels from both edges to 1.

    The weights of two tiles that overlap by so much add up to 1.
    """
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    ramp = np.minimum(distance / max(overlap, 1.0), 1.0)
    return (ramp if blending == "linear" else np.sin(0.5 * np.pi * ramp) ** 2).astype(np.float32)


class Writes(Protocol):
    """What blocks are written to."""

    def write(self, box: Box, array: Array) -> None:
        """Write the voxels (z, y, x) of a box."""


@dataclass(frozen=True)
class FuseBlock:
    """Fuses one block of the canvas and writes it."""

    acquisition: Acquisition
    channel: int
    shading: Shading | None
    places: tuple[TilePlace, ...]
    origin: tuple[int, int, int]
    blending: Blending
    writer: Writes
    exposures: tuple[Exposure, ...] = ()

    def __call__(self, box: Box) -> tuple[tuple[str, str], ...]:
        """Fuse the voxels of a box of the canvas; return what this process could not read."""
        here = box.shifted(self.origin)
        out = np.zeros(box.shape, dtype=self.acquisition.dtype)
        limit = np.float32(np.iinfo(out.dtype).max)
        _, height, width = self.acquisition.tile_shape
        vertical, horizontal = self.acquisition.overlap
        rows = edge_weights(height, height * vertical, self.blending)
        columns = edge_weights(width, width * horizontal, self.blending)
        # Always in the order of the tiles: sums of floats depend on it.
        parts = [
            (tile, place, place.seen_in(here), self._observed(tile), exposure)
            for tile, place, exposure in zip(
                self.acquisition.tiles, self.places, self.exposures or (Exposure(),) * len(self.places), strict=True
            )
            if place.box.intersection(here).size
        ]
        reader = ReadAhead(self.acquisition, self.channel)
        total, weight = np.empty((2, *box.shape[1:]), dtype=np.float32)
        for z in range(here.start[0], here.stop[0]):
            total[:] = 0
            weight[:] = 0
            for tile, place, held, observed, exposure in parts:
                whole = place.at(z)
                part = whole.intersection(here)
                if not part.size or not observed[plane := z - place.first_plane]:
                    continue
                _, y, x = part.shifted([-v for v in whole.start]).slices
                _, v, u = part.shifted([-s for s in here.start]).slices
                pixels, content = self._read(reader, tile, plane, (y, x), held)
                sums = total[v, u], weight[v, u]
                if self.shading is None and content is None and exposure == Exposure():
                    _add(*sums, pixels, rows[y], columns[x])
                    continue
                one = np.broadcast_to(np.float32(1), pixels.shape)
                _add_evened(
                    *sums,
                    pixels,
                    rows[y],
                    columns[x],
                    one if content is None else content,
                    one if self.shading is None else self.shading.flat[y, x],
                    np.float32(0 if self.shading is None else self.shading.background),
                    np.float32(exposure.gain),
                    np.float32(exposure.offset),
                )
            _finish(total, weight, limit, out[z - here.start[0]])
        self.writer.write(box, out)
        return damaged_planes()

    def _read(
        self, reader: ReadAhead, tile: Tile, plane: int, wanted: tuple[slice, slice], held: tuple[slice, slice]
    ) -> tuple[Array, NDArray[np.float32] | None]:
        """Return a part of a plane, and how much it shows if that counts.

        What is read is the same on all planes, however the tile drifts, so that the reader can read them together.
        """
        content = None
        if self.blending == "content":
            rows, columns = (
                content_part(part, length) for part, length in zip(held, self.acquisition.tile_shape[1:], strict=True)
            )
            held = rows, columns
        wide = reader.plane(tile, plane, *held)
        if self.blending == "content":
            content = content_weights(wide, held, wanted)
        part = tuple(slice(w.start - h.start, w.stop - h.start) for w, h in zip(wanted, held, strict=True))
        return np.ascontiguousarray(wide[part]), content

    def _observed(self, tile: Tile) -> NDArray[np.bool_]:
        observed = np.zeros(self.acquisition.tile_shape[0], dtype=np.bool_)
        for start, stop in self.acquisition.planes(tile, self.channel):
            observed[start:stop] = True
        return observed


def _origin(places: Sequence[TilePlace], depth: Literal["union", "intersection"]) -> tuple[int, int, int]:
    """Position of the canvas's first voxel in the project's frame."""
    starts = [place.box.start for place in places]
    first = (max if depth == "intersection" else min)(start[0] for start in starts)
    return first, min(start[1] for start in starts), min(start[2] for start in starts)


@njit(cache=True, nogil=True)
def _add(total: Array, weight: Array, pixels: Array, rows: Array, columns: Array) -> None:
    """Add a plane times its weights, and the weights, to two sums (float32, y x)."""
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            w = rows[y] * columns[x] * np.float32(pixels[y, x] != 0)
            total[y, x] += w * np.float32(pixels[y, x])
            weight[y, x] += w


@njit(cache=True, nogil=True, error_model="numpy")
def _add_evened(
    total: Array,
    weight: Array,
    pixels: Array,
    rows: Array,
    columns: Array,
    content: Array,
    flat: Array,
    background: float,
    gain: float,
    offset: float,
) -> None:
    """Do what `_add` does with ``max(pixels - background, 0) / flat * gain + offset``, weighed by the content too."""
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            w = rows[y] * columns[x] * content[y, x] * np.float32(pixels[y, x] != 0)
            value = max(np.float32(pixels[y, x]) - background, np.float32(0)) / flat[y, x]
            total[y, x] += w * (value * gain + offset)
            weight[y, x] += w


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(total: Array, weight: Array, limit: float, out: Array) -> None:
    """Divide the sums, round to nearest and clip; 0 where nothing was observed, and only there.

    Black that was seen and black that was never looked at differ for whatever reads the volume: its mean, its weight.
    """
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if weight[y, x] > 0:
                out[y, x] = min(max(np.rint(total[y, x] / weight[y, x]), np.float32(1)), limit)
            else:
                out[y, x] = 0
