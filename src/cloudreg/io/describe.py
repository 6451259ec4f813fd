"""What a volume is, in words for a person."""

from __future__ import annotations

import os

import numpy as np

from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.io.opening import open_volume
from cloudreg.io.volume import Volume
from cloudreg.space import Grid


def describe(volume: Volume | str | os.PathLike[str]) -> dict[str, str]:
    """Return the properties of a volume by name, in the order in which to show them.

    Parameters
    ----------
    volume
        A volume, or anything `open_volume` takes; an unfinished one says so.
    """
    size_known = True
    if not isinstance(volume, Volume):
        path = volume
        try:
            volume = open_volume(path, allow_incomplete=True)
        except VoxelSizeUnknownError:
            size_known = False
            volume = open_volume(path, voxel_size_um=(1.0, 1.0, 1.0), allow_incomplete=True)
    grid = volume.grid
    voxels = sum(int(np.prod(g.shape)) for g in volume.levels)
    rows = {
        "path": volume.path,
        "format": volume.format,
        "kind": volume.kind,
        "shape": _times(grid.shape) + " voxels (z y x)",
        "channels": str(volume.channels) if volume.channel_names is None else ", ".join(volume.channel_names),
        "dtype": volume.dtype.name,
        "voxel size": _times(_rounded(grid.voxel_size_um)) + " um",
        "extent": _times(_rounded(grid.size_um / 1000.0)) + " mm",
        "origin": " ".join(_rounded(grid.origin_um)) + " um"
        if volume.has_own_frame
        else "none: the first voxel is at 0",
        "orientation": volume.orientation or "not known: give --orientation",
        "chunk": _times(volume.chunk),
        "bytes": f"{voxels * volume.channels * volume.dtype.itemsize / 1e9:.3g} GB before compression",
    }
    if not size_known:
        rows |= {"voxel size": "not known: give --voxel-size Z Y X", "extent": "not known"}
    if not grid.is_axis_aligned:
        rows["axes"] = "; ".join(" ".join(_rounded(row)) for row in grid.affine[:3, :3]) + " um per voxel (z y x)"
    for i, level in enumerate(volume.levels[1:], start=1):
        rows[f"level {i}"] = _level(level)
    for i, note in enumerate(volume.notes):
        rows[f"note {i + 1}" if i else "note"] = note
    return rows


def _level(grid: Grid) -> str:
    return f"{_times(grid.shape)} voxels of {_times(_rounded(grid.voxel_size_um))} um"


def _times(values: object) -> str:
    return " x ".join(str(v) for v in values)  # type: ignore[attr-defined]


def _rounded(values: object) -> list[str]:
    return [f"{float(v) + 0.0:.6g}" for v in values]  # type: ignore[attr-defined]
