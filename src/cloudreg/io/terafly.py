"""A volume as TeraStitcher and Vaa3D's TeraFly keep it: a folder a resolution, of planes or of tiles.

``RES(VxHxD)`` is a resolution of so many voxels. In it lie planes ``v_h_d.tif``, or tiles in folders ``v/v_h``; the
numbers are where a file starts, in tenths of a micrometre from the volume's first voxel. Volumes of several channels
have a folder ``CH_1``, ``CH_2``… for each in every resolution, with its tiles.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_free_space
from cloudreg.io.downsample import downsample
from cloudreg.io.levels import next_factors
from cloudreg.io.tiff_writing import create_tiff_series, require_tiff_type
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

TeraflyForm = Literal["series", "tiles_2d", "tiles_3d", "tiles_4d"]
Step = tuple[int, int, int]


def write_terafly(
    volume: Volume,
    out: str | Path,
    boxes: Sequence[Box],
    *,
    form: TeraflyForm = "series",
    levels: Sequence[int] = (0,),
    isotropic: bool = False,
    engine: Engine,
    ledger: Ledger | None = None,
) -> list[Path]:
    """Write a volume in folders of TIFF files.

    Parameters
    ----------
    volume
        What to write.
    out
        Folder of the resolutions.
    boxes
        How the finest level is cut; each starts at multiples of 2 to the power of the coarsest level. A task holds
        one. Tiles are as large as these boxes.
    form
        A file a plane; tiles of a file a plane, or of one file each; or such tiles of each channel.
    levels
        Resolutions; each has half the voxels of the one before along every axis, as averages.
    isotropic
        Halve only the finest axes, so that voxels become cubes.
    engine, ledger
        Run the boxes, and remember which are done.

    Returns
    -------
    list of Path
        The folder of each level. They appear when all are whole.

    Raises
    ------
    InputError
        If a folder exists, the volume has several channels and the form has none, it has a type that TIFF has no name
        for, or the disk is too small.
    """
    out = Path(out)
    if volume.channels != 1 and form != "tiles_4d":
        raise InputError(
            f"expected a volume of one channel, {volume.path} has {volume.channels}: choose one, or 'TIFF (tiled, 4D)'"
        )
    require_tiff_type(volume.dtype, out)
    steps, pyramid = _pyramid(volume.grid, max(levels), isotropic=isotropic)
    grids = [pyramid[level] for level in levels]
    folders = [out / "RES({1}x{2}x{0})".format(*grid.shape) for grid in grids]
    for folder in folders:
        if folder.exists():
            raise InputError(f"expected nothing at {folder}, got a finished volume: choose a new place or remove it")
    unfinished = [folder.with_name(f".unfinished.{folder.name}") for folder in folders]
    if ledger is None or not len(ledger) or not all(folder.exists() for folder in unfinished):
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        voxels = sum(grid.shape[0] * grid.shape[1] * grid.shape[2] for grid in grids)
        require_free_space(out, voxels * volume.channels * volume.dtype.itemsize, f"the planes in {out}")
        if ledger is not None:
            ledger.clear()
    for folder in unfinished:
        folder.mkdir(parents=True, exist_ok=True)
    targets = tuple(
        (level, _target(folder, grid, volume, form))
        for level, folder, grid in sorted(zip(levels, unfinished, grids, strict=True), key=lambda t: t[0])
    )
    engine.run(_WriteBox(volume, targets, steps), boxes, label="Writing planes", ledger=ledger)
    for folder, whole in zip(unfinished, folders, strict=True):
        folder.replace(whole)
    return folders


def _pyramid(grid: Grid, count: int, *, isotropic: bool) -> tuple[tuple[Step, ...], list[Grid]]:
    """Return by how much each axis shrinks from each level to the next, z y x, and the grids of all levels."""
    steps: list[Step] = []
    grids = [grid]
    for _ in range(count):
        steps.append(next_factors(grids[-1]) if isotropic else (2, 2, 2))
        grids.append(grids[-1].downsampled(steps[-1]))
    return tuple(steps), grids


class _Target(Protocol):
    def write(self, box: Box, array: NDArray[Any], channel: int) -> None: ...


def _target(folder: Path, grid: Grid, volume: Volume, form: TeraflyForm) -> _Target:
    if form != "series":
        channels = [f"CH_{number + 1}" for number in range(volume.channels)] if form == "tiles_4d" else [""]
        return _Tiles(tuple(folder / name for name in channels), grid, planes=form == "tiles_2d")
    names = [f"{_place(grid, 0, 0, z)}.tif" for z in range(grid.shape[0])]
    if len(set(names)) < len(names):
        raise InputError(f"expected planes at least 0.1 um apart, {volume.path} has them closer: write OME-Zarr")
    return create_tiff_series(folder, 1, grid, volume.dtype, names)


def _place(grid: Grid, y: int, x: int, z: int) -> str:
    """Return the start of a file as its name, v_h_d."""
    dz, dy, dx = grid.voxel_size_um
    return f"{_tenths(y * dy)}_{_tenths(x * dx)}_{_tenths(z * dz)}"


def _tenths(um: float) -> str:
    return f"{round(10 * um):06d}"


@dataclass(frozen=True)
class _Tiles:
    """Writes each box into files of its own, in the folder of its channel."""

    folders: tuple[Path, ...]
    grid: Grid
    planes: bool

    def write(self, box: Box, array: NDArray[Any], channel: int) -> None:
        """Write a box (z, y, x)."""
        import tifffile

        z, y, x = box.start
        rows, columns, _ = _place(self.grid, y, x, z).split("_")
        home = self.folders[channel] / rows / f"{rows}_{columns}"
        home.mkdir(parents=True, exist_ok=True)
        parts = [(z + i, plane) for i, plane in enumerate(array)] if self.planes else [(z, array)]
        for first, pixels in parts:
            file = home / f"{_place(self.grid, y, x, first)}.tif"
            part = file.with_name(f".{file.name}.part")
            tifffile.imwrite(part, pixels, photometric="minisblack", metadata=None)
            part.replace(file)


@dataclass(frozen=True)
class _WriteBox:
    volume: Volume
    targets: tuple[tuple[int, _Target], ...]
    steps: tuple[Step, ...]

    def __call__(self, box: Box) -> None:
        for channel in range(self.volume.channels):
            array, level, start = self.volume.read(box, channel=channel), 0, box.start
            for wanted, target in self.targets:
                while level < wanted:
                    step = self.steps[level]
                    array, level = downsample(array, step, self.volume.kind), level + 1
                    z, y, x = (first // n for first, n in zip(start, step, strict=True))
                    start = (z, y, x)
                target.write(Box.whole(array.shape).shifted(start), array, channel)
