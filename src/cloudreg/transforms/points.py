"""Files of points through a transform.

A file is CSV with a header. Coordinates are ``z_um,y_um,x_um``, physical micrometres, or ``z,y,x``, voxels of the
volume that the points were marked in (voxel i has its centre at i).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.whole import new_file
from cloudreg.space import Grid
from cloudreg.transforms.transform import Side, Transform

UM_COLUMNS = ("z_um", "y_um", "x_um")
VOXEL_COLUMNS = ("z", "y", "x")
_CHUNK_ROWS = 2**16
_FARTHEST = 1e15
"""What is farther, such as 1e400, which is read as infinite, is nowhere; sums and products stay numbers this way."""


@dataclass(frozen=True)
class PointChunk:
    """Some rows of a point file.

    Parameters
    ----------
    columns
        The file's header.
    coordinates
        The three columns that hold the coordinates, z y x.
    rows
        The text of every cell.
    points_um
        (n, 3), z y x; NaN where the file says so, or names a place that is none, such as an infinite one.
    """

    columns: list[str]
    coordinates: list[int]
    rows: list[list[str]]
    points_um: NDArray[np.float64]


def read_points(path: str | Path, grid: Grid | None = None, *, chunk_rows: int = _CHUNK_ROWS) -> Iterator[PointChunk]:
    """Read a point file a chunk at a time; at least one chunk, which may be empty.

    Parameters
    ----------
    path
        CSV as the module describes it.
    grid
        Of the volume that voxel coordinates refer to.
    chunk_rows
        Rows held at once.

    Raises
    ------
    InputError
        If the file is missing, its header has no coordinates, or a row is short or holds no number.
    """
    if not Path(path).is_file():
        raise InputError(f"expected a CSV file of points at {path}, found none: check the path")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            yield from _chunks(file, path, grid, chunk_rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV file of points at {path}: {error}") from error


def read_all_points(path: str | Path, grid: Grid | None = None) -> NDArray[np.float64]:
    """Return all points of a file, (n, 3) micrometres; see `read_points`."""
    return np.concatenate([chunk.points_um for chunk in read_points(path, grid)])


def apply_points_file(
    transform: Transform,
    in_csv: str | Path,
    out_csv: str | Path,
    to: Side,
    *,
    target_grid: Grid | None = None,
    atlas_grid: Grid | None = None,
) -> tuple[int, int]:
    """Map a file of points to the other space.

    Parameters
    ----------
    transform
        Between atlas and target.
    in_csv, out_csv
        CSV as the module describes it. The output has the input's rows in their order: coordinates as
        ``z_um,y_um,x_um`` in place of the three that came, further columns as they were, and ``inside`` at the end:
        1, or 0 with ``nan`` coordinates where the point lies outside the mapped field.
    to
        Space of the output.
    target_grid, atlas_grid
        Of the volume that voxel coordinates refer to; only that of the input's space is used.

    Returns
    -------
    outside, points : int
        How many points lie outside the field, and how many there are.

    Raises
    ------
    InputError
        As `read_points`; or if the output is the input.

    Notes
    -----
    Numbers are written with all their digits, so nothing is lost on the way back. A chunk of rows is held at a time.
    The output appears whole or not at all.
    """
    in_csv, out_csv = Path(in_csv), Path(out_csv)
    if in_csv.resolve() == out_csv.resolve():
        raise InputError(f"the output would overwrite the points {in_csv}: choose another name")
    move = transform.atlas_to_target if to == "target" else transform.target_to_atlas
    grid = atlas_grid if to == "target" else target_grid
    outside = total = 0
    with new_file(out_csv) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, chunk in enumerate(read_points(in_csv, grid)):
            kept = [i for i, name in enumerate(chunk.columns) if name != "inside"]
            place = dict(zip(chunk.coordinates, range(3), strict=True))
            if number == 0:
                names = [UM_COLUMNS[place[i]] if i in place else chunk.columns[i] for i in kept]
                writer.writerow([*names, "inside"])
            points, inside = move(chunk.points_um)
            total += len(points)
            outside += int(np.count_nonzero(~inside))
            points[~inside] = np.nan
            for row, point, ok in zip(chunk.rows, points.tolist(), inside.tolist(), strict=True):
                cells = [repr(point[place[i]]) if i in place else row[i] for i in kept]
                writer.writerow([*cells, int(ok)])
    return outside, total


def _chunks(file: TextIO, path: str | Path, grid: Grid | None, chunk_rows: int) -> Iterator[PointChunk]:
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    names, in_voxels = _coordinate_names(header, path)
    if in_voxels and grid is None:
        raise InputError(f"{path} is in voxels (z,y,x) of an unknown volume: give z_um,y_um,x_um instead")
    where = [header.index(name) for name in names]
    first = 2
    while True:
        rows = list(islice(reader, chunk_rows))
        numbered = [(first + i, row) for i, row in enumerate(rows) if any(cell.strip() for cell in row)]
        points = np.array([_numbers(row, where, line, len(header), path) for line, row in numbered]).reshape(-1, 3)
        if in_voxels and grid is not None:
            points = grid.index_to_um(points)
        if numbered or first == 2:
            yield PointChunk(header, where, [row for _, row in numbered], points)
        if len(rows) < chunk_rows:
            return
        first += len(rows)


def _coordinate_names(header: Sequence[str], path: str | Path) -> tuple[tuple[str, ...], bool]:
    for names, in_voxels in ((UM_COLUMNS, False), (VOXEL_COLUMNS, True)):
        if all(header.count(name) == 1 for name in names):
            return names, in_voxels
    raise InputError(
        f"expected a header with z_um,y_um,x_um (micrometres) or z,y,x (voxels) in {path}, got {','.join(header)!r}"
    )


def _numbers(row: list[str], where: list[int], line: int, columns: int, path: str | Path) -> list[float]:
    if len(row) != columns:
        raise InputError(f"line {line} of {path} has {len(row)} columns, its header {columns}: mend the line")
    try:
        values = [float(row[i]) for i in where]
    except ValueError:
        got = ",".join(row[i] for i in where)
        raise InputError(f"expected three numbers in line {line} of {path}, got {got!r}") from None
    return [value if abs(value) < _FARTHEST else float("nan") for value in values]
