"""Raw data of a COLM light-sheet microscope: one folder a tile, one TIFF a plane and channel."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.io.remote import RemotePath, place_of
from cloudreg.tiles.acquisition import Acquisition, Place, Tile, to_intervals
from cloudreg.tiles.damage import note_damage
from cloudreg.tiles.experiment import PIXEL_UM, Experiment, read_experiment, read_scanned_cells
from cloudreg.tiles.plane_files import DamagedPlaneError, PlaneKind, inspect_plane, read_plane, unlike

INI = "Experiment.ini"
SCANNED_CELLS = "Scanned Cells.txt"
VIEW = "VW0"

CORRECTED = "_corrected"
"""How the name of a plane that was evened ends, before its suffix."""

PLANE = re.compile(r"LOC(\d+)\D*_CM(\d+)_CHN(\d+)_PLN(\d+)[^/]*\.tiff?$", re.IGNORECASE)
_FOLDER = re.compile(r"LOC(\d+)$", re.IGNORECASE)
_SIZES_INSPECTED = 8


@dataclass(frozen=True)
class PlaneNames:
    """The file names of one channel of one tile, without a string for each of thousands of planes.

    Parameters
    ----------
    prefix, digits, suffix
        What the plane's number is written between, and how many digits it has at least.
    others
        Names that don't follow, by plane.
    """

    prefix: str
    digits: int
    suffix: str
    others: Mapping[int, str]

    @staticmethod
    def describe(names: Mapping[int, str]) -> PlaneNames:
        """Find the pattern of at least one name, each given by its plane."""
        name = names[min(names)]
        match = PLANE.search(name)
        if match is None:
            raise ValueError(f"{name} is not the name of a plane")
        start, stop = match.span(4)
        pattern = PlaneNames(name[:start], stop - start, name[stop:], {})
        return replace(pattern, others={plane: name for plane, name in names.items() if name != pattern[plane]})

    def __getitem__(self, plane: int) -> str:
        return self.others.get(plane) or f"{self.prefix}{plane:0{self.digits}d}{self.suffix}"


@dataclass(frozen=True, eq=False)
class ColmAcquisition(Acquisition):
    """A COLM acquisition; opened by `open_colm`, which checks it."""

    _names: Mapping[tuple[str, int], PlaneNames] = field(repr=False)
    _digests: Mapping[int, str] = field(repr=False)

    def plane_path(self, tile: Tile, channel: int, plane: int) -> Place:
        """Return the file of a plane that exists."""
        return self.planes_folder / tile.name / self._names[tile.name, channel][plane]

    def _fill(
        self, tile: Tile, channel: int, start: int, stop: int, rows: slice, columns: slice, out: NDArray[np.generic]
    ) -> None:
        _, height, width = self.tile_shape
        kind = PlaneKind(height, width, self.dtype)
        for plane in range(start, stop):
            read_plane(self.plane_path(tile, channel, plane), kind, rows, columns, out[plane - start])

    def fingerprint(self, channels: Iterable[int]) -> str:
        """Return a hash of the description and of the names, sizes and times of these channels' files."""
        digest = hashlib.sha256()
        for name in (INI, SCANNED_CELLS):
            digest.update(hashlib.sha256((_description(self.path) / name).read_bytes()).digest())
        # The voxel size may have been given instead of read.
        digest.update(repr(self.voxel_size_um).encode())
        for channel in sorted(set(channels)):
            self.require_channel(channel)
            digest.update(f"{channel}:{self._digests[channel]}".encode())
        return digest.hexdigest()

    def file_pattern(self, channel: int) -> str:
        """Return a regular expression that matches the whole name of each file of a channel, and of no other."""
        self.require_channel(channel)
        names = [names for (_, c), names in self._names.items() if c == channel]
        suffixes = {name.rpartition(".")[2] for n in names for name in (n.suffix, *n.others.values())}
        suffix = suffixes.pop() if len(suffixes) == 1 else "[tT][iI][fF][fF]?"
        corrected = CORRECTED if all(is_corrected(n.suffix) for n in names) else ""
        return rf".*_CHN{channel:02d}_PLN.*{corrected}\.{suffix}"


def plane_name(location: int, channel: int, plane: int) -> str:
    """Return the file name that COLM gives to a plane."""
    return f"{VIEW}_LOC{location:03d}D_CM0_CHN{channel:02d}_PLN{plane:04d}.tif"


def folder_name(location: int) -> str:
    """Return the folder name that COLM gives to a tile."""
    return f"LOC{location:03d}"


def is_corrected(name: str) -> bool:
    """Whether a plane's name says that it was evened."""
    return name.rpartition(".")[0].lower().endswith(CORRECTED)


def open_colm(
    path: str | Place,
    *,
    voxel_size_um: Sequence[float] | None = None,
    strict: bool = False,
    corrected: bool = True,
) -> ColmAcquisition:
    """Open a raw acquisition, and check all that can be checked without reading its pixels.

    Parameters
    ----------
    path
        Folder with ``Experiment.ini``, ``Scanned Cells.txt`` and ``VW0``, or its address on an object store.
    voxel_size_um
        z, y, x, instead of what ``Experiment.ini`` says; needed where the objective is not a known one.
    strict
        Whether a plane that can't be read is an error; else it is taken for lost.
    corrected
        Of a plane that is there as it was recorded and evened as well (``…_corrected.tiff``), take the evened one.

    Returns
    -------
    ColmAcquisition
        Planes that are missing in the sequence are no error: they are listed in `Acquisition.lost_planes`.

    Raises
    ------
    InputError
        If a text file is missing, not whole or contradicts the other; if the folder of an imaged cell is missing; if a
        tile is of another size or type than the rest, or a plane exists twice; if only some planes have evened copies;
        if it is strict, of a truncated plane or one of another size, too. Of each tile and channel, one file of each
        different size is opened (one in all on an object store, which doesn't list sizes); a plane that is damaged
        inside is found by `Acquisition.read`.
    """
    if isinstance(path, str):
        path = place_of(path) or Path(path)
    path = _home(path)
    described = _description(path)
    experiment = read_experiment(described / INI)
    scanned = read_scanned_cells(described / SCANNED_CELLS, experiment.rows, experiment.columns)
    if not scanned.any():
        raise InputError(f"expected a 1 for each cell that was imaged in {described / SCANNED_CELLS}, got 0 in all")
    voxel = _voxel_size(path, experiment, voxel_size_um)
    view = path / VIEW
    listed = _listed(view)
    folders = _folders(view, listed)

    tiles: list[Tile] = []
    names: dict[tuple[str, int], PlaneNames] = {}
    digests: dict[int, hashlib._Hash] = defaultdict(hashlib.sha256)
    kind: PlaneKind | None = None
    evened: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for location in np.flatnonzero(scanned):
        row, column = divmod(int(location), experiment.columns)
        folder = folders.get(int(location))
        if folder is None:
            raise InputError(
                f"{path / SCANNED_CELLS} says that row {row}, column {column} was imaged, and {view} has no folder "
                f"{folder_name(int(location))}: copy it, or set the cell to 0"
            )
        files = _planes(view / folder, listed[folder], int(location), corrected)
        for channel in sorted(files):
            planes = files[channel]
            for file in planes.values():
                evened[channel][file.in_two_forms] += 1
            usual, *others = _suspects(planes)
            for plane in (usual, *others):
                suspect = view / folder / planes[plane].name
                try:
                    found = inspect_plane(suspect)
                    kind = kind or PlaneKind(experiment.height, experiment.width, found.dtype)
                    if found != kind:
                        raise unlike(suspect, found, kind)
                except InputError as error:
                    # A few planes of another kind are damage, a tile of them is another acquisition's.
                    if strict or (plane == usual and not isinstance(error, DamagedPlaneError)):
                        raise
                    note_damage(f"{folder} plane {plane} of channel {channel}", str(error))
                    del planes[plane]
            if not planes:
                continue
            names[folder, channel] = PlaneNames.describe({plane: file.name for plane, file in planes.items()})
            for file in planes.values():
                digests[channel].update(f"{folder}/{file.name}:{file.size}:{file.time_ns}\n".encode())
        tiles.append(Tile(folder, row, column, {channel: to_intervals(planes) for channel, planes in files.items()}))
    for channel, (single, double) in evened.items():
        if corrected and single and double:
            raise InputError(
                f"expected evened copies of all planes of channel {channel} in {view} or of none, got {double} of "
                f"{single + double}: go on with what evened them, or remove the files that end in {CORRECTED}"
            )
    if kind is None:
        raise InputError(f"expected planes such as {plane_name(0, 0, 0)} in the folders of {view}, found none")

    ends = [intervals[-1][1] for tile in tiles for intervals in tile.planes_by_channel.values()]
    acquisition = ColmAcquisition(
        path=path,
        rows=experiment.rows,
        columns=experiment.columns,
        tile_shape=(max(experiment.planes, *ends, 0), experiment.height, experiment.width),
        voxel_size_um=voxel,
        overlap=experiment.overlap,
        channels=tuple(sorted(digests)),
        dtype=kind.dtype,
        tiles=tuple(tiles),
        objective=experiment.objective,
        planes_folder=view,
        _names=names,
        _digests={channel: digest.hexdigest() for channel, digest in digests.items()},
        strict=strict,
    )
    unscanned = [name for number, name in folders.items() if number >= scanned.size or not scanned.flat[number]]
    unscanned = [name for name in unscanned if any(PLANE.search(file.name) for file in listed[name])]
    if unscanned:
        say(
            f"{described / SCANNED_CELLS} says that {', '.join(unscanned)} were not imaged, "
            "and they hold planes: left out"
        )
    _warn(acquisition, experiment)
    return acquisition


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    time_ns: int
    in_two_forms: bool = False


def _home(path: Place) -> Place:
    """Return the folder that holds the view; the view itself is understood too."""
    if isinstance(path, Path) and not path.is_dir():
        raise InputError(f"expected the folder of a raw acquisition at {path}, found {_what(path)}")
    if path.name == VIEW and ((path.parent / INI).exists() or (path / INI).exists()):
        return path.parent
    return path


def _description(path: Place) -> Place:
    """Return the folder of the two text files: beside the view, or, as the 2021 program's working copies, in it."""
    return path / VIEW if not (path / INI).exists() and (path / VIEW / INI).exists() else path


def _what(path: Place) -> str:
    return "a file" if path.exists() else "nothing"


def _voxel_size(path: Place, experiment: Experiment, given: Sequence[float] | None) -> tuple[float, float, float]:
    if given is not None:
        z, y, x = (float(v) for v in given)
        if not (0 < z < np.inf and 0 < y < np.inf and 0 < x < np.inf):
            raise InputError(f"a voxel size is three lengths above 0 um, z y x, got {tuple(given)}")
        return z, y, x
    pixel = experiment.pixel_size_um
    if pixel is None:
        known = ", ".join(f"{m:g}x" for m in PIXEL_UM)
        raise InputError(
            f"{path / INI} names the objective {experiment.objective!r}, whose pixel size is not known ({known} are): "
            "give the voxel size"
        )
    return experiment.step_um, pixel, pixel


def _listed(view: Place) -> dict[str, list[_File]]:
    """Return the files in each folder of the view; sizes are -1 where they aren't known."""
    listed: dict[str, list[_File]] = defaultdict(list)
    if isinstance(view, RemotePath):
        for name in view.files():
            folder, _, file = name.partition("/")
            if file and "/" not in file:
                listed[folder].append(_File(file, -1, 0))
        if not listed:
            raise InputError(f"expected the tiles' folders in {view}, found nothing: check the address")
        return dict(listed)
    if not view.is_dir():
        raise InputError(f"expected the tiles' folders in {view}, found {_what(view)}: copy the whole acquisition")
    for folder in sorted(entry.name for entry in view.iterdir() if entry.is_dir()):
        with os.scandir(view / folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.is_file():
                    status = entry.stat()
                    listed[folder].append(_File(entry.name, status.st_size, status.st_mtime_ns))
        listed.setdefault(folder, [])
    return dict(listed)


def _folders(view: Place, listed: Iterable[str]) -> dict[int, str]:
    folders: dict[int, str] = {}
    for name in sorted(listed):
        match = _FOLDER.match(name)
        if match is None:
            continue
        if int(match[1]) in folders:
            raise InputError(f"{view} has two folders of one tile, {folders[int(match[1])]} and {name}: remove one")
        folders[int(match[1])] = name
    return folders


def _planes(folder: Place, listed: Iterable[_File], location: int, corrected: bool) -> dict[int, dict[int, _File]]:
    """Return the files of a tile by channel and plane, planes ascending; of a plane's two forms, the one wanted."""
    files: dict[int, dict[int, _File]] = defaultdict(dict)
    for file in sorted(listed, key=lambda file: file.name):
        match = PLANE.search(file.name)
        if match is None or file.name.startswith("."):
            continue
        if int(match[1]) != location:
            raise InputError(f"{folder / file.name} belongs to another tile than its folder: put it back")
        channel, plane = int(match[3]), int(match[4])
        known = files[channel].get(plane)
        if known is not None and not known.in_two_forms and is_corrected(known.name) != is_corrected(file.name):
            if is_corrected(known.name) == corrected:
                files[channel][plane] = replace(known, in_two_forms=True)
                continue
        elif known is not None:
            raise InputError(
                f"{folder} holds plane {plane} of channel {channel} twice, as {known.name} and {file.name}: remove one"
            )
        files[channel][plane] = replace(file, in_two_forms=known is not None)
    return {channel: dict(sorted(planes.items())) for channel, planes in files.items()}


def _suspects(planes: Mapping[int, _File]) -> list[int]:
    """Return planes that stand for all the others, one of each file size; the first has the size of most.

    Sound uncompressed planes are of one size, so any other size is a truncated or foreign file. Compressed ones all
    differ: then only the one of middle size, the smallest and the largest file are chosen.
    """
    by_size = {file.size: plane for plane, file in reversed(list(planes.items()))}
    every = sorted(file.size for file in planes.values())
    middle = every[len(every) // 2]
    sizes = sorted(by_size)
    if len(sizes) > _SIZES_INSPECTED:
        sizes = sorted({sizes[0], middle, sizes[-1]})
    return [by_size[size] for size in sorted(sizes, key=lambda size: size != middle)]


def _warn(acquisition: ColmAcquisition, experiment: Experiment) -> None:
    for channel in acquisition.channels:
        empty = [tile.name for tile in acquisition.tiles if not acquisition.planes(tile, channel)]
        if empty:
            say(f"channel {channel}: no planes at all in {', '.join(empty)}")
        for tile in acquisition.tiles:
            lost = acquisition.lost_planes(tile, channel)
            if lost and tile.name not in empty:
                say(f"channel {channel}: {len(lost)} of {acquisition.tile_shape[0]} planes of {tile.name} are missing")
    if len(acquisition.channels) != experiment.channels:
        say(f"{acquisition.path / INI} counts {experiment.channels} channel(s), found {len(acquisition.channels)}")
