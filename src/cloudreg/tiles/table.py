"""Folders of tiles with a table of their positions, or with positions in the tiles' own metadata.

A table is CSV or YAML::

    file,z_um,y_um,x_um            voxel_size_um: [5, 1.2, 1.2]
    a.ome.tif,0,0,0                tiles:
    b.ome.tif,0,0,1040.5             - {file: a.tif, position_um: [0, 0, 0]}
                                     - {file: b.tif, position_px: [0, 0, 870], channel: 1}

Columns ``z``, ``y``, ``x`` are pixels; z may be left out. A column ``channel`` tells tiles of one place apart.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from cloudreg.errors import InputError
from cloudreg.io import Volume, open_volume
from cloudreg.io.lengths import VoxelSizeUnknownError, micrometres_per
from cloudreg.io.remote import RemotePath
from cloudreg.io.tiff import TIFF_SUFFIXES
from cloudreg.io.tiff_metadata import opened_tiff
from cloudreg.tiles.acquisition import Place
from cloudreg.tiles.volumes import Block, PlacedTile, VolumeAcquisition, blocks_of, from_volumes, with_channels

TABLES = tuple(f"{name}.{end}" for name in ("tiles", "positions") for end in ("csv", "yaml", "yml"))
"""Names by which a table is found in its folder."""

_ZARR = (".zarr",)
_UNITS_UNKNOWN = ("reference frame", "referenceframe", "")


@dataclass(frozen=True)
class _Entry:
    """A row of a table: positions in micrometres, or in pixels."""

    file: str
    position: tuple[float, float, float]
    in_um: bool
    channel: int | None


def open_table(path: Place, *, voxel_size_um: Sequence[float] | None = None, strict: bool = False) -> VolumeAcquisition:
    """Open the tiles that a table names, relative to its folder.

    Raises
    ------
    InputError
        If the table is damaged, a tile is missing or unlike the others, or two are at one place.
    """
    entries, stated = _read_table(path)
    size = voxel_size_um if voxel_size_um is not None else stated
    opened = [_opened(path.parent, entry.file, size) for entry in entries]
    size = tuple(float(v) for v in (size or opened[0].grid.voxel_size_um))
    tiles: dict[tuple[float, float, float], PlacedTile] = {}
    for entry, volume in zip(entries, opened, strict=True):
        position = tuple(p / s if entry.in_um else p for p, s in zip(entry.position, size, strict=True))
        blocks = blocks_of(volume)
        if entry.channel is not None:
            if volume.channels != 1:
                raise InputError(f"expected one channel in {volume.path}, got {volume.channels}: leave channel out")
            blocks = {entry.channel: (Block(0, volume, 0),)}
        known = tiles.get(entry.position)
        if known is not None and set(known.blocks) & set(blocks):
            raise InputError(f"{path} has {known.name} and {entry.file} at the same position: remove one of them")
        if known is None:
            z, y, x = position
            tiles[entry.position] = PlacedTile(_short(entry.file), (z, y, x), blocks)
        else:
            tiles[entry.position] = with_channels(known, blocks)
    return from_volumes(path, path.parent, list(tiles.values()), size, strict=strict)


def open_placed_tiles(
    folder: Place, names: Sequence[str], *, voxel_size_um: Sequence[float] | None = None, strict: bool = False
) -> VolumeAcquisition:
    """Open tiles that say themselves where they are: OME-TIFF (position of the stage) or OME-Zarr (translation).

    Parameters
    ----------
    folder, names
        Of the tiles.

    Raises
    ------
    InputError
        If a tile doesn't say, or is unlike the others.
    """
    tiles = []
    opened = [_opened(folder, name, voxel_size_um) for name in names]
    size = opened[0].grid.voxel_size_um
    for name, volume in zip(names, opened, strict=True):
        if name.lower().endswith(TIFF_SUFFIXES):
            position = _stage_position_um(folder / name)
        else:
            # A voxel size that was given would put it at zero.
            first = _opened(folder, name, None).grid.origin_um
            position = (float(first[0]), float(first[1]), float(first[2]))
        z, y, x = (p / s for p, s in zip(position, size, strict=True))
        tiles.append(PlacedTile(_short(name), (z, y, x), blocks_of(volume)))
    return from_volumes(folder, folder, tiles, size, strict=strict)


def tiles_in(folder: Place) -> list[str]:
    """Return the names of the volumes in a folder: TIFF files and Zarr folders, in order of their names."""
    if isinstance(folder, RemotePath):
        names = {name.partition("/")[0] for name in folder.files()}
    else:
        names = {entry.name for entry in folder.iterdir()}
    return sorted(n for n in names if n.lower().endswith((*TIFF_SUFFIXES, *_ZARR)) and not n.startswith("."))


def _opened(folder: Place, file: str, voxel_size_um: Sequence[float] | None) -> Volume:
    absolute = "://" in file or file.startswith("/")
    try:
        return open_volume(file if absolute else str(folder / file), voxel_size_um=voxel_size_um)
    except VoxelSizeUnknownError as error:
        raise InputError(f"{error} (z y x), or voxel_size_um in a YAML table") from error


def _short(file: str) -> str:
    return re.sub(r"(\.ome)?\.(tiff?|zarr)$", "", file.rstrip("/"), flags=re.IGNORECASE)


def _read_table(path: Place) -> tuple[list[_Entry], tuple[float, float, float] | None]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a table of tiles at {path}: {error}") from error
    size = None
    if path.name.lower().endswith((".yaml", ".yml")):
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"expected YAML in {path}: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(content.get("tiles"), list):
            raise InputError(f"expected a list named tiles in {path}, got none")
        rows = [_flat(path, row) for row in content["tiles"]]
        if "voxel_size_um" in content:
            size = _triple(path, content["voxel_size_um"], "voxel_size_um")
    else:
        rows = [{str(k).strip(): v for k, v in row.items() if k} for row in csv.DictReader(io.StringIO(text))]
    if not rows:
        raise InputError(f"expected a row for each tile in {path}, got none")
    return [_entry(path, row, number) for number, row in enumerate(rows, 1)], size


def _flat(path: Place, row: object) -> dict[str, Any]:
    """Return a row of YAML with a name for each coordinate, as CSV has them."""
    if not isinstance(row, dict):
        raise InputError(f"expected each tile of {path} to have a file and a position, got {row!r}")
    flat = dict(row)
    for name, end in (("position_um", "_um"), ("position_px", "")):
        if name in flat:
            position = _triple(path, flat.pop(name), name)
            flat |= {f"{axis}{end}": p for axis, p in zip("zyx", position, strict=True)}
    return flat


def _triple(path: Place, value: object, name: str) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise InputError(f"expected {name} of three numbers z, y, x in {path}, got {value!r}")
    z, y, x = (float(v) for v in value)
    return z, y, x


def _entry(path: Place, row: Mapping[str, Any], number: int) -> _Entry:
    file = str(row.get("file") or "").strip()
    in_um = "x_um" in row
    names = [f"{axis}_um" if in_um else axis for axis in "zyx"]
    if not file or names[1] not in row or names[2] not in row:
        raise InputError(
            f"expected file and z_um, y_um, x_um (or z, y, x in pixels) in row {number} of {path}, got {dict(row)}"
        )
    try:
        z, y, x = (float(row.get(name) or 0) for name in names)
        channel = None if row.get("channel") in (None, "") else int(row["channel"])
    except (TypeError, ValueError) as error:
        raise InputError(f"expected numbers in row {number} of {path}: {error}") from error
    if not all(map(math.isfinite, (z, y, x))):
        raise InputError(f"expected finite positions in row {number} of {path}, got {(z, y, x)}")
    return _Entry(file, (z, y, x), in_um, channel)


def _stage_position_um(file: Place) -> tuple[float, float, float]:
    """Return where the stage was at the first plane of an OME-TIFF, z y x; z is zero where the file doesn't say."""
    with opened_tiff(file) as tif:
        text = tif.ome_metadata
    planes = [] if not text else [e for e in ElementTree.fromstring(text).iter() if e.tag.endswith("}Plane")]
    planes = [e for e in planes if "PositionX" in e.attrib and "PositionY" in e.attrib]
    if not planes:
        folder = file.parent if isinstance(file, RemotePath) else Path(file).parent
        raise InputError(f"{file} doesn't say where the stage was: write the positions into {folder / TABLES[0]}")
    first = min(planes, key=lambda e: int(e.attrib.get("TheZ", 0)))
    position = []
    for axis in "ZYX":
        unit = first.attrib.get(f"Position{axis}Unit", "")
        um = 1.0 if unit in _UNITS_UNKNOWN else micrometres_per(unit, str(file))
        position.append(float(first.attrib.get(f"Position{axis}", 0)) * um)
    z, y, x = position
    return z, y, x
