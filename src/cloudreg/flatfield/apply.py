"""Corrected tiles as an acquisition of their own, for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_free_space
from cloudreg.flatfield.destripe import Destriping
from cloudreg.flatfield.shading import Shading
from cloudreg.io.dtypes import to_dtype
from cloudreg.tiles import Acquisition, open_colm
from cloudreg.tiles.colm import VIEW, ColmAcquisition, folder_name, plane_name
from cloudreg.tiles.colm_writer import describe, write_description
from cloudreg.tiles.plane_files import write_plane

_PLANES_A_TASK = 32


@dataclass(frozen=True)
class _Part:
    """Some planes of one tile and channel; the block that a ledger knows."""

    tile: int
    channel: int
    start: int
    stop: int


def correct_tiles(
    acquisition: Acquisition,
    shadings: Mapping[int, Shading],
    out: str | Path,
    engine: Engine,
    ledger: Ledger | None = None,
    *,
    destriping: Destriping | None = None,
) -> ColmAcquisition:
    """Write an acquisition with the background taken off and the flat field undone.

    Parameters
    ----------
    acquisition
        Left as it is.
    shadings
        By channel; other channels are left out.
    out
        New or empty folder, or one that this function was stopped in. It is an acquisition when all is written.
    engine
        Runs tasks of a few planes; each holds two copies of one plane.
    ledger
        Which tasks are done.
    destriping
        Takes stripes out of each plane after its shading, or None.

    Returns
    -------
    ColmAcquisition
        Of the same type of integers, rounded and clipped. Lost planes stay lost.

    Raises
    ------
    InputError
        If there is no such channel, the flat field is of another size, the output exists, or the disk is too small.
    """
    out = Path(out)
    _, height, width = acquisition.tile_shape
    for channel, shading in shadings.items():
        acquisition.require_channel(channel)
        shading.require_size(height, width)
    # A run that was stopped has left planes and no description.
    expected = set() if ledger is None else {VIEW}
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - expected):
        raise InputError(f"expected a new or empty folder for the corrected tiles, {out} exists: choose another place")
    parts = [
        _Part(index, channel, first, min(first + _PLANES_A_TASK, stop))
        for index, tile in enumerate(acquisition.tiles)
        for channel in sorted(shadings)
        for start, stop in acquisition.planes(tile, channel)
        for first in range(start, stop, _PLANES_A_TASK)
    ]
    waiting = sum(part.stop - part.start for part in parts if ledger is None or str(part) not in ledger)
    require_free_space(out, waiting * (height * width * acquisition.dtype.itemsize + 512), "the corrected acquisition")
    for tile in acquisition.tiles:
        _folder(out, acquisition, tile.row, tile.column).mkdir(parents=True, exist_ok=True)
    engine.run(
        partial(_correct, acquisition, dict(shadings), out, destriping),
        parts,
        label="correct tiles",
        unit="parts",
        ledger=ledger,
    )
    scanned = np.zeros((acquisition.rows, acquisition.columns), bool)
    for tile in acquisition.tiles:
        scanned[tile.row, tile.column] = True
    grid = acquisition.rows, acquisition.columns
    write_description(
        out,
        describe(
            acquisition.tile_shape,
            acquisition.voxel_size_um,
            acquisition.overlap,
            grid,
            len(shadings),
            acquisition.objective,
        ),
        scanned,
    )
    return open_colm(out)


def _correct(
    acquisition: Acquisition, shadings: dict[int, Shading], out: Path, destriping: Destriping | None, part: _Part
) -> None:
    tile = acquisition.tiles[part.tile]
    folder = _folder(out, acquisition, tile.row, tile.column)
    location = tile.row * acquisition.columns + tile.column
    for plane in range(part.start, part.stop):
        raw = acquisition.read(tile, part.channel, plane, plane + 1)
        if not raw.any():
            continue  # it can't be read, or is black: lost
        even = shadings[part.channel].apply(raw)[0]
        if destriping is not None:
            even = destriping.apply(even)
        write_plane(folder / plane_name(location, part.channel, plane), to_dtype(even, acquisition.dtype))


def _folder(out: Path, acquisition: Acquisition, row: int, column: int) -> Path:
    return out / VIEW / folder_name(row * acquisition.columns + column)
