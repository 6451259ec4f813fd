"""From one format to another, block by block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cloudreg.errors import InputError, VerificationError
from cloudreg.execution import Engine, Ledger, require_free_space
from cloudreg.io.blocks import blocks_within
from cloudreg.io.create import create_volume
from cloudreg.io.dtypes import Kind, held_dtype, to_dtype
from cloudreg.io.missing import requiring_chunks
from cloudreg.io.objects import plain_address
from cloudreg.io.opening import open_volume
from cloudreg.io.part import part_of
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.pyramid import write_levels
from cloudreg.io.tiff_writing import TiffBoxes, create_tiff, create_tiff_series, require_tiff_type
from cloudreg.io.verify import verify_volume
from cloudreg.io.volume import Volume
from cloudreg.io.writing import require_new, writable_format, write_volume
from cloudreg.space import Box, Grid


def convert(
    source: str | os.PathLike[str] | Volume,
    destination: str | os.PathLike[str],
    *,
    engine: Engine,
    voxel_size_um: Sequence[float] | None = None,
    orientation: str | None = None,
    kind: Kind | None = None,
    level: int = 0,
    region: Box | None = None,
    dtype: DTypeLike | None = None,
    sharded: bool | None = None,
    fill_missing: bool = False,
    verify: bool = False,
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
    region
        Box of that level, in voxels; all of it by default.
    dtype
        Type of the result, by default the source's. Numbers are rounded to nearest and clipped; ids that don't fit
        are refused.
    sharded
        Whether many chunks share an object; see `create_volume`.
    fill_missing
        Take chunks that are missing in the source for zeros; see `requiring_chunks`.
    verify
        Read the result back and compare every voxel of every level.
    ledger
        Remembers finished blocks of a chunked volume or a TIFF, so that a killed run goes on.

    Raises
    ------
    InputError
        If the source is no volume or misses chunks, the destination holds something or can't hold the type, or the
        disk or the memory is too small.
    VerificationError
        If what is read back differs.
    """
    volume = source
    if not isinstance(volume, Volume):
        volume = open_volume(volume, voxel_size_um=voxel_size_um, orientation=orientation, kind=kind)
    wanted = volume.dtype if dtype is None else held_dtype(dtype, str(destination))
    part = part_of(volume, level=level, region=region)
    form = writable_format(destination)
    place = plain_address(os.fspath(destination).removeprefix(PREFIX))
    _require_outside(volume, place)
    if not fill_missing:
        part = part_of(requiring_chunks(volume, level, region), level=level, region=region)
    reader = _Reader(part, wanted)
    match form:
        case "chunked":
            return _to_chunks(reader, destination, engine, ledger, sharded, verify)
        case "tiff" | "tiff-series":
            return _to_tiff(reader, Path(place), engine, ledger, verify)
        case _:
            written = _to_whole_file(reader, Path(place), engine)
            if verify:
                verify_volume(reader, written, engine=engine)
            return written


def _require_outside(volume: Volume, place: str) -> None:
    """Keep the source as it is: nothing is written into its folder."""
    source = volume.path.removeprefix(PREFIX)
    if place.startswith(f"{source}/"):
        raise InputError(f"expected a place outside {source}, which is read, got {place}: choose another one")


@dataclass(frozen=True)
class _Reader:
    """Reads boxes of a volume's finest level, in the type wanted."""

    volume: Volume
    dtype: np.dtype[Any]

    def __call__(self, box: Box, channel: int | None) -> NDArray[Any]:
        array = self.volume.read(box, channel=channel)
        result = to_dtype(array, self.dtype)
        if self.volume.kind == "labels" and result is not array and (result.astype(array.dtype) != array).any():
            raise InputError(
                f"expected ids of {self.volume.path} that fit {self.dtype}, got {array.max()}: choose a wider type"
            )
        return result

    @property
    def bytes_per_voxel(self) -> int:
        """Memory that the type of the source takes where it is not the one wanted."""
        return 0 if self.volume.dtype == self.dtype else self.volume.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Size of the result before compression."""
        return int(np.prod(self.volume.grid.shape)) * self.volume.channels * self.dtype.itemsize


def _to_chunks(
    reader: _Reader,
    destination: str | os.PathLike[str],
    engine: Engine,
    ledger: Ledger | None,
    sharded: bool | None,
    verify: bool,
) -> Volume:
    volume = reader.volume
    writer = create_volume(
        destination,
        volume.grid,
        reader.dtype,
        channels=volume.channels,
        kind=volume.kind,
        orientation=volume.orientation,
        channel_names=volume.channel_names,
        sharded=sharded,
        ledger=ledger,
    )
    write_levels(reader, writer, read_bytes=reader.bytes_per_voxel, engine=engine, ledger=ledger)
    if verify:
        # Before it counts as complete: a run that is killed while it reads back goes on, too.
        _verify(reader, open_volume(writer.path, allow_incomplete=True), engine, ledger)
    return writer.complete()


def _verify(reader: _Reader, written: Volume, engine: Engine, ledger: Ledger | None) -> None:
    """Compare what was written; where it differs, the next run writes all of it again."""
    try:
        verify_volume(reader, written, engine=engine)
    except VerificationError:
        if ledger is not None:
            ledger.clear()
        raise


def _to_whole_file(reader: _Reader, file: Path, engine: Engine) -> Volume:
    volume = reader.volume
    needed = int(np.prod(volume.grid.shape)) * volume.channels * (reader.dtype.itemsize + volume.dtype.itemsize)
    if needed > engine.memory_bytes:
        raise InputError(
            f"expected at least {needed / 1e9:.3g} GB of memory to write {file} as a whole, got "
            f"{engine.memory_bytes / 1e9:.3g} GB: write .ome.zarr, take a coarser --level or raise --memory"
        )
    array = reader(Box.whole(volume.grid.shape), None)
    array = array[0] if volume.channels == 1 else array
    return write_volume(file, array, volume.grid, kind=volume.kind, orientation=volume.orientation)


def _to_tiff(reader: _Reader, place: Path, engine: Engine, ledger: Ledger | None, verify: bool) -> Volume:
    volume = reader.volume
    with new_tiff(place, volume.grid, reader.dtype, ledger, channels=volume.channels) as files:
        task = _CopyBox(reader, files)
        voxel_bytes = 2 * reader.dtype.itemsize + reader.bytes_per_voxel
        boxes = blocks_within(volume.grid.shape, volume.chunk, voxel_bytes, engine.memory_per_block_bytes)
        items = [_Item(channel, box) for channel in range(volume.channels) for box in boxes]
        sizes = [item.box.size * reader.dtype.itemsize for item in items]
        engine.run(task, items, label="Writing planes", ledger=ledger, sizes=sizes)
        if verify:
            written = open_volume(files.place, kind=volume.kind)
            _verify(reader, replace(written, path=str(place)), engine, ledger)
    return open_volume(place, kind=volume.kind)


@contextmanager
def new_tiff(
    place: Path, grid: Grid, dtype: np.dtype[Any], ledger: Ledger | None, *, channels: int = 1
) -> Iterator[TiffBoxes]:
    """Give a TIFF, or a folder of TIFF planes, to be filled; it stands at its place when the body ends.

    Parameters
    ----------
    place
        New; a name without suffix is a folder.
    grid, dtype, channels
        Of the volume.
    ledger
        With one, what a killed run left is gone on with, if any of its blocks is noted. Without, nothing is left
        behind.

    Raises
    ------
    InputError
        If something is at the place, TIFF has no such type, or the disk is too small.
    """
    series = writable_format(place) == "tiff-series"
    if not series:
        require_new(place, overwrite=False)
    elif place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise InputError(f"expected nothing or an empty folder at {place}, got something else: choose a new place")
    require_tiff_type(dtype, place)
    temporary = place.with_name(f".unfinished.{place.name}")
    if ledger is None or not len(ledger) or not temporary.exists():
        require_free_space(place.parent, int(np.prod(grid.shape)) * channels * dtype.itemsize, str(place))
        _remove(temporary)
        if ledger is not None:
            ledger.clear()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if series:
            temporary.mkdir(exist_ok=True)
        yield (create_tiff_series if series else create_tiff)(temporary, channels, grid, dtype)
        temporary.replace(place)
    finally:
        if ledger is None:
            _remove(temporary)


@dataclass(frozen=True)
class _Item:
    channel: int
    box: Box

    def __str__(self) -> str:
        return f"channel{self.channel}_{self.box}"


@dataclass(frozen=True)
class _CopyBox:
    reader: _Reader
    boxes: TiffBoxes

    def __call__(self, item: _Item) -> None:
        self.boxes.write(item.box, self.reader(item.box, item.channel), item.channel)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
