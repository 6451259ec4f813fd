"""Zarr arrays and N5 folders that carry less than OME-Zarr does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io.chunked import ChunkedSource, StoredArray
from cloudreg.io.dtypes import held_dtype, likely_kind
from cloudreg.io.lengths import VoxelSizeUnknownError, micrometres_per
from cloudreg.io.objects import Json, read_jsons
from cloudreg.io.volume import Volume
from cloudreg.space import Grid

_MOST_LEVELS = 32


def read_zarr_array(path: str, driver: str, metadata: Json, size_given: bool) -> Volume:
    """Describe a lone Zarr array: axes by their names, else (c, )z, y, x."""
    if not size_given:
        raise VoxelSizeUnknownError(
            f"expected a voxel size for the Zarr array {path}, which has none: give --voxel-size Z Y X"
        )
    names = metadata.get("dimension_names")
    rank = len(metadata["shape"])
    known = names if names and all(n in tuple("tczyx") for n in names) else None
    return _volume(path, "zarr", [path], {"driver": driver}, "".join(known) if known else _axes(path, rank), None)


def read_n5(path: str, attributes: Json, *, ignore_scale: bool) -> Volume:
    """Describe an N5 array, or a folder of them named s0, s1, … as N5 Viewer, Paintera and BigDataViewer write."""
    if "dimensions" in attributes:
        levels, parts = [path], [attributes]
    else:
        files = [f"s{i}/attributes.json" for i in range(_MOST_LEVELS)]
        found = read_jsons(path, files)
        parts = [found[file] for file in itertools.takewhile(found.__contains__, files)]
        levels = [f"{path}/s{i}" for i in range(len(parts))]
    if not levels:
        raise InputError(f"expected an N5 array or levels s0, s1, … at {path}, got neither: give the path of one in it")
    rank = len(parts[0]["dimensions"])
    axes = "".join(attributes.get("axes") or _axes(path, rank)[::-1])
    size = None if ignore_scale else _n5_voxel_size({**parts[0], **attributes}, axes, path)
    listed = attributes.get("scales") or attributes.get("downsamplingFactors") or []
    factors: list[list[int] | None] = [None]
    for level, part in enumerate(parts[1:], start=1):
        factors.append(part.get("downsamplingFactors") or (listed[level] if level < len(listed) else None))
    return _volume(path, "n5", levels, {"driver": "n5"}, axes, size, factors)


def _n5_voxel_size(attributes: Json, axes: str, path: str) -> tuple[float, float, float]:
    pixel: Any = attributes.get("pixelResolution")
    if isinstance(pixel, dict):
        sizes, units = pixel["dimensions"], [pixel.get("unit", "um")] * len(axes)
    elif pixel is not None or "resolution" in attributes:
        sizes = attributes.get("resolution", pixel)
        units = attributes.get("units") or ["um"] * len(axes)
    else:
        raise VoxelSizeUnknownError(f"expected a voxel size in {path}, got none: give --voxel-size Z Y X")
    um = {a: float(s) * micrometres_per(u, path) for a, s, u in zip(axes, sizes, units, strict=False) if a in "zyx"}
    return um.get("z", um["y"]), um["y"], um["x"]


def _axes(path: str, rank: int) -> str:
    if not 2 <= rank <= 4:
        raise InputError(f"expected an array (c, )z, y, x at {path}, got {rank} dimensions: cut a volume out")
    return "czyx"[-rank:]


def _volume(
    path: str,
    form: str,
    paths: list[str],
    spec: Json,
    axes: str,
    size: tuple[float, float, float] | None,
    factors: Sequence[list[int] | None] = (None,),
) -> Volume:
    """Describe arrays; ``factors`` are of their stored axes, and found by the shapes where a level has none."""
    arrays = tuple(StoredArray(p, spec, axes) for p in paths)
    first = arrays[0].open()
    shapes = [a.view().shape for a in arrays]
    finest = Grid.from_spacing(shapes[0][1:], size or (1.0, 1.0, 1.0))
    steps = [
        [int(f[axes.index(a)]) if a in axes else 1 for a in "zyx"]
        if isinstance(f, list) and len(f) == len(axes)
        else np.maximum(1, np.rint(np.divide(shapes[0][1:], s[1:]))).astype(int).tolist()
        for f, s in zip(factors, shapes, strict=True)
    ]
    dtype = held_dtype(first.dtype.numpy_dtype, path)
    z, y, x = arrays[0].view().chunk_layout.read_chunk.shape[1:]
    return Volume(
        path=path,
        format=form,
        kind=likely_kind(dtype),
        dtype=dtype,
        channels=int(shapes[0][0]),
        levels=tuple(Grid(s[1:], finest.downsampled(t).affine) for s, t in zip(shapes, steps, strict=True)),
        chunk=(int(z or 1), int(y), int(x)),  # an axis that isn't stored has no chunks
        source=ChunkedSource(arrays),
    )
