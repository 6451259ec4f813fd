"""The tiles of a TeraStitcher project: folders of planes (TiledXY|2Dseries) or of 3D files (TiledXY|3Dseries)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.io import open_volume
from cloudreg.io.remote import RemotePath, place_of
from cloudreg.io.tiff import TIFF_SUFFIXES, natural_order
from cloudreg.tiles.acquisition import Acquisition, Intervals, Place, Tile
from cloudreg.tiles.plane_files import PlaneKind, inspect_plane, read_plane
from cloudreg.tiles.project import Project, ProjectTile
from cloudreg.tiles.terastitcher_xml import read_project
from cloudreg.tiles.volumes import Block, PlacedTile, VolumeAcquisition, from_volumes

_3D = "TiledXY|3Dseries"


@dataclass(frozen=True, eq=False)
class PlaneSeries(Acquisition):
    """Tiles that are folders of planes, as a project lists them; made by `open_project`."""

    _files: Mapping[str, tuple[str, ...]] = field(repr=False)
    _digest: str = field(repr=False)
    _pattern: str

    def plane_path(self, tile: Tile, plane: int) -> Place:
        """Return the file of a plane that exists: the files fill the planes that exist one by one."""
        before = 0
        for start, stop in tile.planes_by_channel[0]:
            if start <= plane < stop:
                return self.planes_folder / tile.name / self._files[tile.name][before + plane - start]
            before += stop - start
        raise ValueError(f"{tile.name} has no plane {plane}")

    def _fill(
        self, tile: Tile, channel: int, start: int, stop: int, rows: slice, columns: slice, out: NDArray[np.generic]
    ) -> None:
        _, height, width = self.tile_shape
        for plane in range(start, stop):
            kind = PlaneKind(height, width, self.dtype)
            read_plane(self.plane_path(tile, plane), kind, rows, columns, out[plane - start])

    def fingerprint(self, channels: Iterable[int]) -> str:
        """Return a hash of the description, and of names, sizes and times of the files."""
        return hashlib.sha256(f"{self.voxel_size_um}{self.overlap}{self._digest}".encode()).hexdigest()

    def file_pattern(self, channel: int) -> str:
        """Return the pattern of the project's first tile."""
        self.require_channel(channel)
        return self._pattern


def open_project(
    path: Path, *, voxel_size_um: Sequence[float] | None = None, strict: bool = False
) -> PlaneSeries | VolumeAcquisition:
    """Open the tiles that a TeraStitcher project of any step describes, as an acquisition of one channel.

    Raises
    ------
    InputError
        If a tile's folder or files are missing, or tiles are not alike.
    """
    project = read_project(path)
    text = str(project.stacks_dir)
    # A path keeps one slash of an address.
    folder: Place = place_of(re.sub(r"^(\w+):/+", r"\1://", text)) or project.stacks_dir
    cells = [tile for tile in project.tiles if tile.name and tile.planes != ()]
    if not cells:
        raise InputError(f"{path} names no tile that has planes")
    size = project.voxel_size_um if voxel_size_um is None else tuple(float(v) for v in voxel_size_um)
    files = {(t.row, t.column): _files(path, folder, t) for t in cells}
    if project.volume_format == _3D:
        return _open_blocks(path, folder, project, cells, files, size, strict)
    return _open_planes(path, folder, project, cells, files, size, strict)


def _files(path: Path, folder: Place, tile: ProjectTile) -> list[str]:
    """Return the names of a tile's files in order."""
    home = folder / tile.name
    if isinstance(home, RemotePath):
        names = [n for n in home.files() if "/" not in n]
    elif home.is_dir():
        names = [entry.name for entry in os.scandir(home) if entry.is_file()]
    else:
        raise InputError(f"{path} names the tile {tile.name}, and {home} is no folder: copy it, or mend stacks_dir")
    try:
        pattern = re.compile(tile.pattern or r".*\..*")
    except re.error as error:
        raise InputError(f"expected a regular expression for IMG_REGEX in {path}, got {tile.pattern!r}") from error
    found = [n for n in names if pattern.fullmatch(n) and n.lower().endswith(TIFF_SUFFIXES) and not n.startswith(".")]
    if not found:
        raise InputError(f"expected TIFF files that match {tile.pattern!r} in {home}, got none")
    return [p.name for p in natural_order(Path(n) for n in found)]


def _overlap(project: Project, size: Sequence[float], height: int, width: int) -> tuple[float, float]:
    pitch = project.pitch_um[0] / size[1], project.pitch_um[1] / size[2]
    found = tuple(1 - p / n for p, n in zip(pitch, (height, width), strict=True))
    if not all(0 <= o < 1 for o in found):
        raise InputError(
            f"the project's pitch of {pitch[0]:g} x {pitch[1]:g} pixels doesn't fit tiles of {height} x {width}: "
            "mend mechanical_displacements"
        )
    return found[0], found[1]


def _open_planes(
    path: Path,
    folder: Place,
    project: Project,
    cells: Sequence[ProjectTile],
    files: Mapping[tuple[int, int], list[str]],
    size: tuple[float, ...],
    strict: bool,
) -> PlaneSeries:
    tiles = []
    kind = inspect_plane(folder / cells[0].name / files[cells[0].row, cells[0].column][0])
    digest = hashlib.sha256()
    for cell in cells:
        names = files[cell.row, cell.column]
        present: Intervals = cell.planes if cell.planes is not None else ((0, len(names)),)
        wanted = sum(stop - start for start, stop in present)
        if len(names) < wanted:
            raise InputError(f"{path} promises {wanted} planes of {cell.name}, {folder / cell.name} has {len(names)}")
        if len(names) > wanted == project.slices:
            say(f"{folder / cell.name} has {len(names)} files, the project {wanted} planes: the first count")
        if len(names) == project.slices > wanted:
            # A full folder: each plane is the file of its own number.
            names[:] = [names[p] for start, stop in present for p in range(start, stop)]
        found = inspect_plane(folder / cell.name / names[0])
        if found != kind:
            raise InputError(
                f"expected {kind.height} x {kind.width} pixels of {kind.dtype} in {cell.name}, got "
                f"{found.height} x {found.width} of {found.dtype}: all tiles must be alike"
            )
        for name in names:
            file = folder / cell.name / name
            age = (file.stat().st_size, file.stat().st_mtime_ns) if isinstance(file, Path) else ()
            digest.update(repr((cell.name, name, age)).encode())
        tiles.append(Tile(cell.name, cell.row, cell.column, {0: present}))
    z, y, x = size
    return PlaneSeries(
        path=path,
        rows=project.rows,
        columns=project.columns,
        tile_shape=(project.slices, kind.height, kind.width),
        voxel_size_um=(z, y, x),
        overlap=_overlap(project, size, kind.height, kind.width),
        channels=(0,),
        dtype=kind.dtype,
        tiles=tuple(tiles),
        objective="",
        planes_folder=folder,
        strict=strict,
        _files={cell.name: tuple(files[cell.row, cell.column]) for cell in cells},
        _digest=digest.hexdigest(),
        _pattern=cells[0].pattern,
    )


def _open_blocks(
    path: Path,
    folder: Place,
    project: Project,
    cells: Sequence[ProjectTile],
    files: Mapping[tuple[int, int], list[str]],
    size: tuple[float, ...],
    strict: bool,
) -> VolumeAcquisition:
    placed = []
    for cell in cells:
        starts = _numbers(cell, "BLOCKS_ABS_D")
        blocks, depth = [], 0
        for number, name in enumerate(files[cell.row, cell.column]):
            volume = open_volume(str(folder / cell.name / name), voxel_size_um=size)
            start = starts[number] if number < len(starts) else depth
            depth = start + volume.grid.shape[0]
            blocks.append(Block(start, volume, 0))
        _, height, width = blocks[0].volume.grid.shape
        down, right = project.pitch_um[0] / size[1], project.pitch_um[1] / size[2]
        placed.append(PlacedTile(cell.name, (0.0, cell.row * down, cell.column * right), {0: tuple(blocks)}))
    return from_volumes(
        path,
        folder,
        placed,
        size,
        strict=strict,
        grid=(project.rows, project.columns),
        cells=[(cell.row, cell.column) for cell in cells],
        overlap=_overlap(project, size, height, width),
    )


def _numbers(cell: ProjectTile, name: str) -> list[int]:
    """Return the whole numbers in an attribute; where the blocks of a tile begin, in planes from its first."""
    found = [int(n) for n in re.findall(r"-?\d+", cell.extras.attributes.get(name, ""))]
    return [n - found[0] for n in found]
