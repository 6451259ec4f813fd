"""Writing an acquisition in COLM's layout: for phantoms, for tests, and for tiles that were corrected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import require_free_space
from cloudreg.tiles.colm import INI, SCANNED_CELLS, VIEW, ColmAcquisition, folder_name, open_colm, plane_name
from cloudreg.tiles.experiment import Experiment, format_experiment, format_scanned_cells, objective_pixel_um
from cloudreg.tiles.plane_files import write_plane

PlaneSource = Callable[[int, int, int, int], NDArray[np.generic] | None]
"""From row, column, channel and plane to the pixels, or None for a plane that was lost."""


def write_colm(
    path: str | Path,
    *,
    rows: int,
    columns: int,
    tile_shape: tuple[int, int, int],
    voxel_size_um: Sequence[float],
    overlap: tuple[float, float],
    channels: int,
    objective: str,
    scanned: NDArray[np.bool_],
    planes: PlaneSource,
) -> ColmAcquisition:
    """Write a COLM acquisition, plane by plane.

    Parameters
    ----------
    path
        New or empty folder.
    rows, columns
        Size of the stage grid.
    tile_shape
        Planes, height and width.
    voxel_size_um
        z, y, x, with y = x. Where the objective has another pixel size, or a tile is not square, ``Experiment.ini``
        says so in a section of its own, which `open_acquisition` honours and other readers of COLM don't know.
    overlap
        Vertical and horizontal fraction of the tile.
    channels
        How many, numbered from 0.
    objective
        Name with its magnification, such as ``10x 0.6NA``.
    scanned
        (rows, columns), True where there is a tile.
    planes
        Called as ``planes(row, column, channel, plane)`` in that order of loops; returns (height, width) of uint8 or
        uint16, or None for a lost plane, which is not written.

    Raises
    ------
    InputError
        If the folder is not empty, the disk is too small, or the voxel size or grid can't be described.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"expected a new or empty folder for the acquisition, {path} exists: choose another place")
    scanned = np.asarray(scanned, dtype=bool)
    if scanned.shape != (rows, columns):
        raise InputError(f"expected {rows} x {columns} cells in the grid of scanned cells, got {scanned.shape}")
    depth, height, width = tile_shape
    experiment = describe(tile_shape, voxel_size_um, overlap, (rows, columns), channels, objective)
    require_free_space(path, int(scanned.sum()) * channels * depth * (2 * height * width + 512), "the acquisition")
    for location in (int(i) for i in np.flatnonzero(scanned)):
        folder = path / VIEW / folder_name(location)
        folder.mkdir(parents=True)
        row, column = divmod(location, columns)
        for channel in range(channels):
            for plane in range(depth):
                pixels = planes(row, column, channel, plane)
                if pixels is None:
                    continue
                if pixels.shape != (height, width) or pixels.dtype not in (np.uint8, np.uint16):
                    raise ValueError(f"expected a plane of {height} x {width}, got {pixels.shape} of {pixels.dtype}")
                write_plane(folder / plane_name(location, channel, plane), pixels)
    write_description(path, experiment, scanned)
    return open_colm(path)


def describe(
    tile_shape: tuple[int, int, int],
    voxel_size_um: Sequence[float],
    overlap: tuple[float, float],
    grid: tuple[int, int],
    channels: int,
    objective: str,
) -> Experiment:
    """Return the description of an acquisition; the pixel size is stated only where the objective tells another.

    Raises
    ------
    InputError
        If pixels are not square.
    """
    z, y, x = (float(v) for v in voxel_size_um)
    if y != x:
        raise InputError(f"COLM pixels are square, got {y} x {x} um")
    depth, height, width = tile_shape
    experiment = Experiment(
        rows=grid[0],
        columns=grid[1],
        planes=depth,
        height=height,
        width=width,
        step_um=z,
        overlap=overlap,
        channels=channels,
        objective=objective,
    )
    usual = objective_pixel_um(objective, width)
    return experiment if usual and math.isclose(usual, x, rel_tol=1e-12) else replace(experiment, pixel_um=x)


def write_description(path: Path, experiment: Experiment, scanned: NDArray[np.bool_]) -> None:
    """Write the two text files; last, because without them a folder is no acquisition."""
    (path / SCANNED_CELLS).write_bytes(format_scanned_cells(scanned).encode())
    (path / INI).write_bytes(format_experiment(experiment).encode())
