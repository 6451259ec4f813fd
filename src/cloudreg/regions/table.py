"""The region table: size, brightness and cells of every region of the sample, left and right."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas, Region, as_ids, id_type
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume
from cloudreg.io.whole import new_file
from cloudreg.regions.accumulate import SIDES, RegionSums
from cloudreg.space import Box, Grid, split
from cloudreg.transforms import Transform, VoxelMap, read_points

# Fixed, so that float sums are added in the same order whatever the workers and the memory.
_BLOCK = (64, 128, 128)
_PARTS = 32


@dataclass(frozen=True)
class Intensity:
    """Brightness of a region in one channel; exact zeros were not observed and don't count.

    Parameters
    ----------
    observed
        Number of voxels.
    mean, median
        NaN without observed voxels. The median is exact for 8 and 16-bit integers, else within 0.4 %.
    sum
        Of all observed voxels.
    """

    observed: int
    mean: float
    median: float
    sum: float


@dataclass(frozen=True)
class RegionRow:
    """One region on one side.

    Parameters
    ----------
    region, side
        Which; side is ``"left"`` or ``"right"``.
    volume_mm3
        Of all of the sample's voxels that the registration gives to it, observed or not.
    channels
        Brightness by channel name.
    cells
        Number of points in it, None where none were given.
    """

    region: Region
    side: str
    volume_mm3: float
    channels: Mapping[str, Intensity]
    cells: int | None = None


@dataclass(frozen=True)
class RegionTable:
    """Rows in the ontology's order, left before right; only regions that were found.

    A voxel counts for the region whose id it has, not for the regions that hold that one.
    """

    channels: tuple[str, ...]
    rows: tuple[RegionRow, ...]
    has_cells: bool = False


@dataclass(frozen=True)
class _Channel:
    name: str
    volume: Volume
    level: int
    index: int


def region_table(
    transform: Transform,
    atlas: Atlas,
    channels: Mapping[str, Volume],
    *,
    engine: Engine,
    voxel_um: float | None = None,
    cells: str | Path | None = None,
    target_grid: Grid | None = None,
) -> RegionTable:
    """Measure every region of a sample.

    Each voxel of the sample is mapped to the atlas, and counts for the region and the side that it lands in.

    Parameters
    ----------
    transform
        Between atlas and target.
    atlas
        With labels.
    channels
        Volumes on the target's grid, by name; one of several channels gives a column for each, ``name_0``, …
    engine
        Runs the blocks.
    voxel_um
        Work on the coarsest resolution level that is not coarser than this; by default on the finest.
    cells
        Point file of the target (see `cloudreg.transforms.points`) to be counted per region.
    target_grid
        Of the target; needed without channels only.

    Returns
    -------
    RegionTable

    Raises
    ------
    InputError
        If the atlas has no labels, the channels' grids differ, or there is neither a channel nor a grid.

    Notes
    -----
    Reads every channel once. Memory per block: 1 million voxels in every channel with their ids, and the labels they
    map to, cut smaller where that is more than the budget.
    """
    if atlas.labels is None:
        raise InputError(f"the atlas {atlas.name} has no labels, so there are no regions to measure: give --labels")
    columns = _columns(channels, voxel_um)
    if columns:
        grid = columns[0].volume.levels[columns[0].level]
        native = columns[0].volume.grid
    elif target_grid is not None:
        grid = native = target_grid
    else:
        raise InputError("a region table needs a channel, or the target's grid: give --channel")
    measure = _MeasureSlab(
        voxel_map=VoxelMap.between(transform, atlas.labels.grid, grid, "target"),
        labels=atlas.labels,
        right=_plane_in_voxels(atlas.right_of_midplane(), atlas.labels.grid),
        channels=columns,
        memory_bytes=engine.memory_per_block_bytes,
    )
    total = RegionSums([c.volume.dtype for c in columns])
    for part in engine.run(measure, _slabs(grid), label="region table", unit="slabs"):
        if part is not None:
            total.merge(part)
    counts = None if cells is None else count_cells(transform, atlas, cells, native)
    return RegionTable(
        channels=tuple(c.name for c in columns),
        rows=_rows(atlas, columns, total, counts, grid.voxel_volume_um3),
        has_cells=counts is not None,
    )


def count_cells(transform: Transform, atlas: Atlas, cells: str | Path, grid: Grid | None) -> dict[tuple[int, str], int]:
    """Count the points of a file by region id and side; those outside the field or all regions are left out."""
    counts: dict[tuple[int, str], int] = {}
    for chunk in read_points(cells, grid):
        points, inside = transform.target_to_atlas(chunk.points_um)
        points = points[inside]
        for region_id, side in zip(atlas.labels_at(points).tolist(), atlas.side(points).tolist(), strict=True):
            if region_id:
                counts[region_id, side] = counts.get((region_id, side), 0) + 1
    return counts


def write_regions_csv(
    table: RegionTable, path: str | Path, *, doubts: Mapping[tuple[int, str], str] | None = None
) -> None:
    """Write ``id,acronym,name,side,volume_mm3`` and ``mean_, median_, sum_`` of each channel, ``cells`` and ``doubt``.

    The file appears whole or not at all. Numbers have all their digits.

    Parameters
    ----------
    table
        What was measured.
    path
        Of the new file.
    doubts
        By id and side, why a region is not to be trusted, or nothing; None leaves the column out.
    """
    path = Path(path)
    header = ["id", "acronym", "name", "side", "volume_mm3"]
    header += [f"{what}_{name}" for name in table.channels for what in ("mean", "median", "sum")]
    header += ["cells"] if table.has_cells else []
    header += [] if doubts is None else ["doubt"]
    with new_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in table.rows:
            line: list[object] = [row.region.id, row.region.acronym, row.region.name, row.side, row.volume_mm3]
            for name in table.channels:
                line += [row.channels[name].mean, row.channels[name].median, row.channels[name].sum]
            line += [row.cells] if table.has_cells else []
            line += [] if doubts is None else [doubts.get((row.region.id, row.side), "")]
            writer.writerow(line)


@dataclass(frozen=True)
class _MeasureSlab:
    """Measures one slab of the target, block by block; picklable."""

    voxel_map: VoxelMap
    labels: Volume
    right: NDArray[np.float64]
    channels: tuple[_Channel, ...]
    memory_bytes: int

    def __call__(self, slab: Box) -> RegionSums:
        sums = RegionSums([c.volume.dtype for c in self.channels])
        for block in split(slab.shape, _BLOCK):
            box = block.shifted(slab.start)
            labels, right = self._regions(box)
            if labels.any():
                values = [c.volume.read(box, level=c.level, channel=c.index) for c in self.channels]
                sums.add(labels, right, values)
        return sums

    def _regions(self, box: Box) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
        dtype = id_type(self.labels.dtype)
        labels, right = np.zeros(box.shape, dtype=dtype), np.zeros(box.shape, dtype=np.uint8)
        parts = self.voxel_map.parts(
            box,
            self.labels.grid.shape,
            source_voxel_bytes=self.labels.dtype.itemsize + dtype.itemsize,
            voxel_bytes=16,
            memory_bytes=self.memory_bytes,
        )
        for part, reach in parts:
            array = as_ids(self.labels.read(reach))
            place = part.shifted([-s for s in box.start]).slices
            labels[place], right[place] = self.voxel_map.nearest(array, reach.start, part, plane=self.right)
        return labels, right


def _columns(channels: Mapping[str, Volume], voxel_um: float | None) -> tuple[_Channel, ...]:
    columns = []
    for name, volume in channels.items():
        level = 0 if voxel_um is None else volume.level_near(voxel_um)
        for index in range(volume.channels):
            columns.append(_Channel(name if volume.channels == 1 else f"{name}_{index}", volume, level, index))
    for other in columns[1:]:
        first = columns[0]
        if other.volume.levels[other.level] != first.volume.levels[first.level]:
            raise InputError(
                f"channels of one table lie on one grid; {other.volume.path} has shape "
                f"{other.volume.levels[other.level].shape} or a place other than {first.volume.path} with "
                f"{first.volume.levels[first.level].shape}: resample it with cloudreg apply, or make two tables"
            )
    return tuple(columns)


def _slabs(grid: Grid) -> list[Box]:
    """At most 32 slabs of whole blocks: few enough to hold all their sums, and the same for any number of workers."""
    planes = _BLOCK[0] * max(1, -(-grid.shape[0] // (_BLOCK[0] * _PARTS)))
    return split(grid.shape, (planes, *grid.shape[1:]))


def _plane_in_voxels(plane: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Express ``plane[:3] @ um + plane[3]`` in voxel indices."""
    return np.asarray(plane @ grid.affine)


def _rows(
    atlas: Atlas,
    columns: Sequence[_Channel],
    total: RegionSums,
    counts: Mapping[tuple[int, str], int] | None,
    voxel_um3: float,
) -> tuple[RegionRow, ...]:
    found = set(total.row_of) | {region_id for region_id, _ in counts or ()}
    ordered = [i for i in atlas.regions if i in found]
    ordered += sorted(found - set(ordered))
    rows = []
    for region_id in ordered:
        for number, side in enumerate(SIDES):
            code = None if region_id not in total.row_of else 2 * total.row_of[region_id] + number
            cells = None if counts is None else counts.get((region_id, side), 0)
            voxels = 0 if code is None else int(total.voxels[code])
            if voxels or cells:
                values = {c.name: _intensity(total, k, code) for k, c in enumerate(columns)}
                region = atlas.regions.named(region_id)
                rows.append(RegionRow(region, side, voxels * voxel_um3 * 1e-9, values, cells))
    return tuple(rows)


def _intensity(total: RegionSums, channel: int, code: int | None) -> Intensity:
    sums = total.channels[channel]
    if code is None or sums.observed[code] == 0:
        return Intensity(0, float("nan"), float("nan"), 0)
    observed, value = int(sums.observed[code]), sums.sums[code].item()
    return Intensity(observed, value / observed, sums.median(code), value)
