"""A stitching project in memory: where each tile lies, and how neighbours were found to be displaced.

It holds what TeraStitcher's project files hold, in our axis order. Displacements are kept towards the east and south
neighbour only; those towards west and north are the same with the other sign.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.tiles.acquisition import Acquisition, Intervals, Place

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Extras:
    """What a file held beyond the format: kept, and written back."""

    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    elements: tuple[str, ...] = ()


@dataclass(frozen=True)
class AxisDisplacement:
    """How far apart two neighbours are along one axis.

    Parameters
    ----------
    px
        Position of the neighbour minus that of the tile.
    nominal_px
        The same by the stage.
    peak
        Correlation at the peak, 0 to 1; 0 where nothing was found.
    width_px
        Half width of the peak.
    largest_width_px
        Largest half width that was looked at.
    infinite_width_px
        The half width that means "no peak".
    search_px
        Search radius asked for; -1 where nothing was measured.
    extras
        Unknown attributes.
    """

    px: float
    nominal_px: int
    peak: float = 0.0
    width_px: float = 30.0
    largest_width_px: float = 29.0
    infinite_width_px: float = 30.0
    search_px: int = -1
    extras: Extras = Extras()

    @property
    def reliability(self) -> float:
        """From 0 to 1: root mean square of the peak's height and its sharpness."""
        sharpness = 1 - self.width_px / self.infinite_width_px
        return math.sqrt((sharpness**2 + self.peak**2) / 2)

    @property
    def rejected(self) -> AxisDisplacement:
        """The nominal displacement, of no reliability."""
        return replace(self, px=self.nominal_px, peak=0.0, width_px=self.infinite_width_px)


@dataclass(frozen=True)
class Displacement:
    """A measured displacement between two neighbours: one per axis, z y x."""

    z: AxisDisplacement
    y: AxisDisplacement
    x: AxisDisplacement
    method: str = "MIP_NCC"
    extras: Extras = Extras()

    @property
    def axes(self) -> tuple[AxisDisplacement, AxisDisplacement, AxisDisplacement]:
        """The three axes, z y x."""
        return self.z, self.y, self.x


@dataclass(frozen=True)
class Certainty:
    """How well a tile's place is known, relative to the tiles that hang together by the images.

    Parameters
    ----------
    sigma_px
        Standard deviations along z, y and x.
    worst_px
        That in the direction, along no axis perhaps, in which least is known.
    stage_share
        How much of the variance in that direction is the stage's, 0 to 1: 1 where the images say nothing.
    """

    sigma_px: Triple
    worst_px: float
    stage_share: float


@dataclass(frozen=True)
class Drift:
    """How a tile moves sideways over its depth: what is added to its position, plane by plane.

    Parameters
    ----------
    planes
        Planes of the tile, ascending, at which it is known.
    y_px, x_px
        What is added there; linear between them, and constant beyond the first and the last.
    """

    planes: tuple[float, ...]
    y_px: tuple[float, ...]
    x_px: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.planes) == len(self.y_px) == len(self.x_px) or not self.planes:
            raise ValueError(f"got {len(self.planes)} planes, {len(self.y_px)} rows and {len(self.x_px)} columns")
        if any(a >= b for a, b in itertools.pairwise(self.planes)):
            raise ValueError("the planes do not ascend")

    def at(self, planes: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
        """Return what is added to the position (n, 2), rows and columns, at some planes (n,)."""
        return np.stack([np.interp(planes, self.planes, along) for along in (self.y_px, self.x_px)], axis=-1)


@dataclass(frozen=True)
class ProjectTile:
    """One cell of the project's grid; a cell without a tile has no name and no planes.

    Parameters
    ----------
    row, column
        Place in the grid.
    name
        Folder, relative to the project's ``stacks_dir``; empty where there is no tile.
    position_px
        First pixel (z, y, x), real numbers.
    planes
        Planes that exist; None where the file does not say.
    pattern
        Regular expression of the file names; empty for all.
    stitchable
        Whether any displacement of the tile is reliable.
    east, south
        Displacements towards the next column and the next row.
    channels, bytes_per_channel
        Of the files.
    certainty
        How well the position is known; None where that isn't known.
    drift
        How the tile moves sideways over its depth, the position being the mean; None where it does not.
    extras
        Unknown attributes and elements.
    """

    row: int
    column: int
    name: str
    position_px: Triple
    planes: Intervals | None
    pattern: str = ""
    stitchable: bool = False
    east: tuple[Displacement, ...] = ()
    south: tuple[Displacement, ...] = ()
    channels: int = 1
    bytes_per_channel: int = 2
    certainty: Certainty | None = None
    drift: Drift | None = None
    extras: Extras = Extras()


@dataclass(frozen=True)
class Project:
    """A stitching project.

    Parameters
    ----------
    rows, columns, slices
        Size of the grid, and planes of the whole depth.
    voxel_size_um
        z, y, x.
    pitch_um
        Nominal distance of neighbours, vertical and horizontal.
    stacks_dir
        Folder of the tiles' folders.
    tiles
        All rows x columns cells, row by row.
    origin_mm
        z, y, x.
    axes
        1 = vertical, 2 = horizontal, 3 = depth, negative if inverted, in the order of acquisition.
    volume_format, input_plugin
        TeraStitcher's names for how tiles are stored and who reads them.
    cache
        Path of TeraStitcher's binary cache, where the file names one.
    extras
        Unknown attributes and elements, by the name of the element that held them.
    """

    rows: int
    columns: int
    slices: int
    voxel_size_um: Triple
    pitch_um: tuple[float, float]
    stacks_dir: Path
    tiles: tuple[ProjectTile, ...]
    origin_mm: Triple = (0.0, 0.0, 0.0)
    axes: tuple[int, int, int] | None = (1, 2, 3)
    volume_format: str = "TiledXY|2Dseries"
    input_plugin: str = "tiff2D"
    cache: str | None = None
    extras: Mapping[str, Extras] = field(default_factory=dict, hash=False)

    def tile(self, row: int, column: int) -> ProjectTile:
        """Return the cell of a row and column."""
        return self.tiles[row * self.columns + column]

    def position_px(self, row: int, column: int) -> Triple:
        """Return where a tile's first pixel lies, z y x."""
        return self.tile(row, column).position_px

    @property
    def nominal_steps_px(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The displacement by the stage towards east and towards south (z, y, x), cut to whole pixels."""
        # The small number mends quotients such as 899.9999999.
        south = math.trunc(self.pitch_um[0] / self.voxel_size_um[1] + 1e-6)
        east = math.trunc(self.pitch_um[1] / self.voxel_size_um[2] + 1e-6)
        return (0, 0, east), (0, south, 0)

    def mapped(self, change: Callable[[ProjectTile], ProjectTile]) -> Project:
        """Return a copy with every tile changed."""
        return replace(self, tiles=tuple(change(tile) for tile in self.tiles))

    def moved(
        self,
        positions_px: Mapping[tuple[int, int], Triple],
        certainties: Mapping[tuple[int, int], Certainty] | None = None,
    ) -> Project:
        """Return a copy with new positions (z, y, x) and how certain they are, by row and column; other tiles stay."""

        def move(tile: ProjectTile) -> ProjectTile:
            place = tile.row, tile.column
            if place not in positions_px:
                return tile
            z, y, x = positions_px[place]
            return replace(tile, position_px=(float(z), float(y), float(x)), certainty=(certainties or {}).get(place))

        return self.mapped(move)

    def drifting(self, drifts: Mapping[tuple[int, int], Drift | None]) -> Project:
        """Return a copy whose tiles drift as given by row and column; other tiles stay."""
        return self.mapped(lambda tile: replace(tile, drift=drifts.get((tile.row, tile.column), tile.drift)))

    def linked(self, links: Mapping[tuple[int, int, str], tuple[Displacement, ...]]) -> Project:
        """Return a copy with new displacements, given by row, column and ``"east"`` or ``"south"``; others stay."""

        def link(tile: ProjectTile) -> ProjectTile:
            place = (tile.row, tile.column)
            return replace(
                tile, east=links.get((*place, "east"), tile.east), south=links.get((*place, "south"), tile.south)
            )

        return self.mapped(link)

    def merged(self, parts: Iterable[Project]) -> Project:
        """Return a copy with the displacements that were measured in several projects of this grid, each once."""
        found: dict[tuple[int, int, str], tuple[Displacement, ...]] = {}
        for part in parts:
            for tile in part.tiles:
                for side, displacements in (("east", tile.east), ("south", tile.south)):
                    place = (tile.row, tile.column, side)
                    known = found.get(place, ())
                    found[place] = known + tuple(d for d in displacements if d not in known)
        return self.linked(found)

    def projected(self) -> Project:
        """Return a copy with exactly one displacement for each pair of neighbours (TeraStitcher's step 3).

        Of several, the most reliable is taken for each axis by itself, the first at a tie; where there is none, the
        nominal one of reliability 0.
        """
        east, south = self.nominal_steps_px

        def project(tile: ProjectTile) -> ProjectTile:
            return replace(
                tile,
                east=(_best(tile.east, east),) if tile.column + 1 < self.columns else (),
                south=(_best(tile.south, south),) if tile.row + 1 < self.rows else (),
            )

        return self.mapped(project)

    def thresholded(self, threshold: float = 0.3) -> Project:
        """Return a copy whose unreliable displacements are the nominal ones (TeraStitcher's step 4).

        A tile is stitchable if any axis towards any of its neighbours reaches the threshold.
        """

        def reset(axis: AxisDisplacement) -> AxisDisplacement:
            return axis if axis.reliability >= threshold else axis.rejected

        def keep(displacements: tuple[Displacement, ...]) -> tuple[Displacement, ...]:
            return tuple(replace(d, z=reset(d.z), y=reset(d.y), x=reset(d.x)) for d in displacements)

        kept = self.projected().mapped(lambda tile: replace(tile, east=keep(tile.east), south=keep(tile.south)))

        def judge(tile: ProjectTile) -> ProjectTile:
            around = tile.east + tile.south
            if tile.column > 0:
                around += kept.tile(tile.row, tile.column - 1).east
            if tile.row > 0:
                around += kept.tile(tile.row - 1, tile.column).south
            return replace(tile, stitchable=any(axis.reliability >= threshold for d in around for axis in d.axes))

        return kept.mapped(judge)


def to_project(acquisition: Acquisition, channel: int) -> Project:
    """Return the project of one channel with the nominal positions and no displacement.

    Cells that were not scanned are in it too, at their nominal positions, as TeraStitcher needs it.
    """
    acquisition.require_channel(channel)
    depth = acquisition.tile_shape[0]
    voxel = acquisition.voxel_size_um
    pitch = acquisition.pitch_px
    pattern = acquisition.file_pattern(channel)
    scanned = {(tile.row, tile.column): tile for tile in acquisition.tiles}

    def cell(row: int, column: int) -> ProjectTile:
        tile = scanned.get((row, column))
        return ProjectTile(
            row,
            column,
            name=tile.name if tile else "",
            position_px=acquisition.nominal_px(tile) if tile else (0.0, row * pitch[0], column * pitch[1]),
            planes=acquisition.planes(tile, channel) if tile else (),
            pattern=pattern,
            bytes_per_channel=acquisition.dtype.itemsize,
            extras=Extras(acquisition.project_attributes(tile, channel)) if tile else Extras(),
        )

    return Project(
        rows=acquisition.rows,
        columns=acquisition.columns,
        slices=depth,
        voxel_size_um=voxel,
        pitch_um=(pitch[0] * voxel[1], pitch[1] * voxel[2]),
        stacks_dir=_absolute(acquisition.planes_folder),
        tiles=tuple(cell(row, column) for row in range(acquisition.rows) for column in range(acquisition.columns)),
        volume_format=acquisition.volume_format,
        input_plugin="tiff2D" if acquisition.volume_format == "TiledXY|2Dseries" else "tiff3D",
    )


def require_same_grid(acquisition: Acquisition, project: Project) -> None:
    """Raise an `InputError` if a project can't be of an acquisition."""
    if (project.rows, project.columns) != (acquisition.rows, acquisition.columns):
        raise InputError(
            f"expected a project of {acquisition.rows} x {acquisition.columns} tiles for {acquisition.path}, "
            f"got one of {project.rows} x {project.columns}: align this acquisition"
        )


def _absolute(folder: Place) -> Path:
    return folder.absolute() if isinstance(folder, Path) else Path(str(folder))


def nominal_displacement(step_px: tuple[int, int, int]) -> Displacement:
    """Return the displacement by the stage (z, y, x), which was not measured."""
    z, y, x = (AxisDisplacement(step, step) for step in step_px)
    return Displacement(z, y, x)


def _best(displacements: tuple[Displacement, ...], nominal: tuple[int, int, int]) -> Displacement:
    if not displacements:
        return nominal_displacement(nominal)
    # max keeps the first of equals.
    z, y, x = (max((d.axes[i] for d in displacements), key=lambda axis: axis.reliability) for i in range(3))
    return replace(displacements[0], z=z, y=y, x=x)
