"""What a volume will cost to store, before a voxel of it is written."""

from __future__ import annotations

import math
import os

from numpy.typing import DTypeLike

from cloudreg.errors import InputError
from cloudreg.io.create import planned_layout
from cloudreg.io.layout import Layout
from cloudreg.io.volume import Volume
from cloudreg.io.writing import writable_format
from cloudreg.space import Grid


def describe_cost(
    volume: Volume, destination: str | os.PathLike[str], *, dtype: DTypeLike | None = None, sharded: bool | None = None
) -> dict[str, str]:
    """Return how many objects a chunked copy of a volume's finest level would make, in words for a person.

    An object of zeros is not written, so these are the most that there will be; each is one PUT request.

    Raises
    ------
    InputError
        If the destination's name is of no chunked format.
    """
    if writable_format(destination) != "chunked":
        raise InputError(
            f"expected .ome.zarr or precomputed:// for --dry-run, which counts their objects, got {destination}: leave "
            "--dry-run out"
        )

    def plan(grid: Grid) -> tuple[Layout, list[int]]:
        layout = planned_layout(
            destination,
            grid,
            volume.dtype if dtype is None else dtype,
            channels=volume.channels,
            kind=volume.kind,
            sharded=sharded,
        )
        return layout, [layout.objects_of(level) for level in range(len(layout.levels))]

    layout, objects = plan(volume.grid)
    finest = math.prod(volume.grid.shape) * volume.channels * layout.dtype.itemsize
    # Small volumes are not cut like large ones, so theirs can't just be multiplied.
    growth = (1e12 / finest) ** (1 / 3)
    shape = [math.ceil(n * growth) for n in volume.grid.shape]
    _, of_a_terabyte = plan(Grid.from_spacing(shape, volume.grid.voxel_size_um))
    rows = {
        "destination": str(destination),
        "format": f"{layout.format}, {'sharded' if layout.sharded else 'not sharded'}",
        "chunk": _times(layout.chunk_of(0)),
        "object": f"{_times(layout.shard_of(0))} voxels",
        "size": f"{finest / 1e9:.3g} GB, {layout.bytes / 1e9:.3g} GB with all levels, before compression",
    }
    for level, count in enumerate(objects):
        rows[f"level {level}"] = f"{_times(layout.levels[level].shape)} voxels, {count} objects"
    rows["objects"] = f"{sum(objects)}, as many PUT requests"
    rows["a terabyte"] = f"{sum(of_a_terabyte)} objects and PUT requests, for a volume of these proportions"
    return rows


def _times(values: tuple[int, ...]) -> str:
    return " x ".join(str(v) for v in values)
