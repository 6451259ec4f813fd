"""From one format to another, block by block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_free_space
from cloudreg.execution.progress import track
from cloudreg.io.create import create_volume
from cloudreg.io.dtypes import Kind, held_dtype, to_dtype
from cloudreg.io.opening import open_volume
from cloudreg.io.pyramid import write_levels
from cloudreg.io.tiff_writing import require_tiff_type, write_tiff, write_tiff_series
from cloudreg.io.volume import Volume
from cloudreg.io.whole import new_file
from cloudreg.io.writing import require_new, writable_format, write_volume
from cloudreg.space import Box


def convert(
    source: str | os.PathLike[str] | Volume,
    destination: str | os.PathLike[str],
    *,
    engine: Engine,
    voxel_size_um: Sequence[float] | None = None,
    orientation: str | None = None,
    kind: Kind | None = None,
    level: int = 0,
    dtype: DTypeLike | None = None,
    sharded: bool | None = None,
    ledger: Ledger | None = None,
) -> Volume:
    """Write a volume again in the format that the destination's name says.

    Chunked formats (with all their levels) and TIFF are streamed; NIfTI and NRRD go through memory as a whole.

    Parameters
    ----------
    source
        A volume, or anything `open_volume` takes.
    destination
        See `writable_format`.
    engine
        Runs the blocks.
    voxel_size_um, orientation, kind
        Override what the source says; see `open_volume`.
    level
        Level of the source to start from.
    dtype
        Type of the result, by default the source's. Numbers are rounded to nearest and clipped; ids that don't fit
        are refused.
    sharded
        Whether many chunks share an object; see `create_volume`.
    ledger
        Remembers finished blocks of a chunked destination, so that a killed run goes on.

    Raises
    ------
    InputError
        If the source is no volume, the destination holds something, can't hold the type, or the disk or the memory
        is too small.
    """
    volume = source
    if not isinstance(volume, Volume):
        volume = open_volume(volume, voxel_size_um=voxel_size_um, orientation=orientation, kind=kind)
    if not 0 <= level < len(volume.levels):
        raise InputError(f"expected a level from 0 to {len(volume.levels) - 1} of {volume.path}, got {level}")
    wanted = volume.dtype if dtype is None else held_dtype(dtype, str(destination))
    reader = _Reader(volume, level, wanted)
    match writable_format(destination):
        case "chunked":
            return _to_chunks(reader, destination, engine, ledger, sharded)
        case "tiff":
            return _to_tiff(reader, Path(destination))
        case "tiff-series":
            return _to_series(reader, Path(destination))
        case _:
            grid = volume.levels[level]
            needed = int(np.prod(grid.shape)) * volume.channels * (wanted.itemsize + volume.dtype.itemsize)
            if needed > engine.memory_bytes:
                raise InputError(
                    f"expected at least {needed / 1e9:.3g} GB of memory to write {destination} as a whole, got "
                    f"{engine.memory_bytes / 1e9:.3g} GB: write .ome.zarr, take a coarser --level or raise --memory"
                )
            array = reader(Box.whole(grid.shape), None)
            array = array[0] if volume.channels == 1 else array
            return write_volume(destination, array, grid, kind=volume.kind, orientation=volume.orientation)


@dataclass(frozen=True)
class _Reader:
    """Reads boxes of one level, in the type wanted."""

    volume: Volume
    level: int
    dtype: np.dtype[Any]

    @property
    def bytes_per_voxel(self) -> int:
        """Memory that the type of the source takes where it is not the one wanted."""
        return 0 if self.volume.dtype == self.dtype else self.volume.dtype.itemsize

    def __call__(self, box: Box, channel: int | None) -> NDArray[Any]:
        array = self.volume.read(box, level=self.level, channel=channel)
        result = to_dtype(array, self.dtype)
        if self.volume.kind == "labels" and result is not array and (result.astype(array.dtype) != array).any():
            raise InputError(
                f"expected ids of {self.volume.path} that fit {self.dtype}, got {array.max()}: choose a wider type"
            )
        return result

    def planes(self) -> Iterator[NDArray[Any]]:
        """Yield the planes of channel 0, then of channel 1, and so on."""
        shape = self.volume.levels[self.level].shape
        with track("Writing planes", self.volume.channels * shape[0], "planes") as advance:
            for channel in range(self.volume.channels):
                for z in range(shape[0]):
                    yield self(_plane(z, shape), channel)[0]
                    advance(1)


def _to_chunks(
    reader: _Reader, destination: str | os.PathLike[str], engine: Engine, ledger: Ledger | None, sharded: bool | None
) -> Volume:
    volume = reader.volume
    writer = create_volume(
        destination,
        volume.levels[reader.level],
        reader.dtype,
        channels=volume.channels,
        kind=volume.kind,
        orientation=volume.orientation,
        channel_names=volume.channel_names,
        sharded=sharded,
    )
    write_levels(reader, writer, read_bytes=reader.bytes_per_voxel, engine=engine, ledger=ledger)
    return writer.complete()


def _to_tiff(reader: _Reader, file: Path) -> Volume:
    volume, grid = reader.volume, reader.volume.levels[reader.level]
    require_new(file, overwrite=False)
    require_tiff_type(reader.dtype, file)
    require_free_space(file.parent, _bytes(reader), f"file {file}")
    with new_file(file) as temporary:
        write_tiff(temporary, reader.planes(), volume.channels, grid, reader.dtype)
    return open_volume(file, kind=volume.kind)


def _to_series(reader: _Reader, folder: Path) -> Volume:
    volume, grid = reader.volume, reader.volume.levels[reader.level]
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"expected nothing or an empty folder at {folder}, got something else: choose a new place")
    require_tiff_type(reader.dtype, folder)
    require_free_space(folder.parent, _bytes(reader), f"folder {folder}")
    temporary = folder.with_name(f".unfinished.{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    channel = 0 if volume.channels == 1 else None
    planes = (np.squeeze(reader(_plane(z, grid.shape), channel), axis=-3) for z in range(grid.shape[0]))
    write_tiff_series(temporary, planes, volume.channels, grid, reader.dtype)
    temporary.replace(folder)
    return open_volume(folder, kind=volume.kind)


def _plane(z: int, shape: tuple[int, int, int]) -> Box:
    return Box((z, 0, 0), (z + 1, shape[1], shape[2]))


def _bytes(reader: _Reader) -> int:
    return int(np.prod(reader.volume.levels[reader.level].shape)) * reader.volume.channels * reader.dtype.itemsize
