"""A volume as TeraStitcher and Vaa3D's TeraFly keep it: a folder a resolution, of planes or of tiles.

``RES(VxHxD)`` is a resolution of so many voxels. In it lie planes ``v_h_d.tif``, or tiles in folders ``v/v_h``; the
numbers are where a file starts, in tenths of a micrometre from the volume's first voxel.
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
from cloudreg.io.tiff_writing import create_tiff_series, require_tiff_type
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

TeraflyForm = Literal["series", "tiles_2d", "tiles_3d"]


def write_terafly(
    volume: Volume,
    out: str | Path,
    boxes: Sequence[Box],
    *,
    form: TeraflyForm = "series",
    levels: Sequence[int] = (0,),
    engine: Engine,
    ledger: Ledger | None = None,
) -> list[Path]:
    """Write a volume of one channel in folders of TIFF files.

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
        A file a plane, or tiles of a file a plane or of one file each.
    levels
        Resolutions; each has half the voxels of the one before along every axis, as averages.
    engine, ledger
        Run the boxes, and remember which are done.

    Returns
    -------
    list of Path
        The folder of each level. They appear when all are whole.

    Raises
    ------
    InputError
        If a folder exists, the volume has several channels or a type that TIFF has no name for, or the disk is too
        small.
    """
    out = Path(out)
    if volume.channels != 1:
        raise InputError(f"expected a volume of one channel, {volume.path} has {volume.channels}: choose one")
    require_tiff_type(volume.dtype, out)
    grids = [volume.grid.downsampled([2**level] * 3) for level in levels]
    folders = [out / "RES({1}x{2}x{0})".format(*grid.shape) for grid in grids]
    for folder in folders:
        if folder.exists():
            raise InputError(f"expected nothing at {folder}, got a finished volume: choose a new place or remove it")
    unfinished = [folder.with_name(f".unfinished.{folder.name}") for folder in folders]
    if ledger is None or not all(folder.exists() for folder in unfinished):
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        voxels = sum(grid.shape[0] * grid.shape[1] * grid.shape[2] for grid in grids)
        require_free_space(out, voxels * volume.dtype.itemsize, f"the planes in {out}")
        if ledger is not None:
            ledger.clear()
    for folder in unfinished:
        folder.mkdir(parents=True, exist_ok=True)
    targets = tuple(
        (level, _target(folder, grid, volume, form))
        for level, folder, grid in sorted(zip(levels, unfinished, grids, strict=True), key=lambda t: t[0])
    )
    engine.run(_WriteBox(volume, targets), boxes, label="Writing planes", ledger=ledger)
    for folder, whole in zip(unfinished, folders, strict=True):
        folder.replace(whole)
    return folders


class _Target(Protocol):
    def write(self, box: Box, array: NDArray[Any], channel: int) -> None: ...


def _target(folder: Path, grid: Grid, volume: Volume, form: TeraflyForm) -> _Target:
    if form != "series":
        return _Tiles(folder, grid, planes=form == "tiles_2d")
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
    """Writes each box into files of its own."""

    folder: Path
    grid: Grid
    planes: bool

    def write(self, box: Box, array: NDArray[Any], channel: int) -> None:
        """Write a box (z, y, x)."""
        import tifffile

        z, y, x = box.start
        rows, columns, _ = _place(self.grid, y, x, z).split("_")
        home = self.folder / rows / f"{rows}_{columns}"
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

    def __call__(self, box: Box) -> None:
        array, level = self.volume.read(box), 0
        for wanted, target in self.targets:
            while level < wanted:
                array, level = downsample(array, (2, 2, 2), self.volume.kind), level + 1
            z, y, x = (start >> level for start in box.start)
            target.write(Box.whole(array.shape).shifted((z, y, x)), array, 0)
