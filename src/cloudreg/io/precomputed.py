"""Neuroglancer precomputed volumes: xyz and nanometres in the file, z y x and micrometres here.

Precomputed says where a voxel's *corner* is, in whole voxels. We take the first voxel's centre to lie at
``voxel_offset`` voxels, so that a volume without offset starts at zero as in every other format. What the format
can't hold (rotations, origins between voxels, letters) stands in the ``info`` file under a key of our own, which
other programs skip.

References
----------
.. [1] https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.chunked import ChunkedSource, StoredArray
from cloudreg.io.dtypes import held_dtype
from cloudreg.io.gzipped import GzippedArray, has_gzipped_chunks
from cloudreg.io.layout import KEY, Layout
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.objects import Json, is_remote
from cloudreg.io.volume import Volume
from cloudreg.space import Grid

PREFIX = "precomputed://"
_ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")


def read_precomputed(path: str, info: Json) -> Volume:
    """Describe a precomputed volume from its ``info``."""
    if not info.get("scales") or "data_type" not in info:
        raise InputError(
            f"expected a precomputed image or segmentation at {path}, got {info.get('@type', 'an info without scales')}"
        )
    scales = info["scales"]
    own = info.get(KEY) or {}
    sizes = [_reversed(scale["size"]) for scale in scales]
    resolutions = [np.asarray(_reversed_float(scale["resolution"])) / 1000.0 for scale in scales]
    offsets = [np.asarray(_reversed(scale.get("voxel_offset", [0, 0, 0]))) for scale in scales]
    finest = Grid.from_spacing(sizes[0], resolutions[0].tolist(), (resolutions[0] * offsets[0]).tolist())
    if "affine" in own:
        finest = Grid(sizes[0], np.asarray(own["affine"], dtype=float))
    levels = []
    for size, resolution, offset in zip(sizes, resolutions, offsets, strict=True):
        ratio = resolution / resolutions[0]
        step = np.eye(4)
        step[:3, :3] = np.diag(ratio)
        step[:3, 3] = ratio * offset + (ratio - 1) / 2 - offsets[0]
        levels.append(Grid(size, finest.affine @ step))
    return Volume(
        path=PREFIX + path,
        format="precomputed",
        kind="labels" if info.get("type") == "segmentation" else "image",
        dtype=held_dtype(info["data_type"], path),
        channels=int(info.get("num_channels", 1)),
        levels=tuple(levels),
        chunk=_reversed(scales[0]["chunk_sizes"][0]),
        source=ChunkedSource(tuple(_stored(path, info, i) for i in range(len(scales)))),
        orientation=own.get("orientation"),
        channel_names=tuple(own["channel_names"]) if "channel_names" in own else None,
    )


def precomputed_metadata(layout: Layout, *, complete: bool) -> Json:
    """Return the ``info`` of a volume."""
    finest = layout.levels[0]
    size_um = np.asarray(finest.voxel_size_um)
    factors = [_ratio(g, finest) for g in layout.levels]
    own = layout.own_metadata(complete=complete)
    offset = np.rint(finest.origin_um / size_um).astype(int)
    whole = finest.is_axis_aligned and np.allclose(
        finest.origin_um, offset * size_um, rtol=0, atol=1e-6 * size_um.min()
    )
    # Levels that may be added later count, too: an offset that changes would lose the chunks written before.
    later = [_ratio(g, finest) for g in pyramid_grids(finest)]
    if not whole or any((offset % f).any() for f in factors + later):
        offset = np.zeros(3, dtype=int)
        own["affine"] = finest.affine.tolist()
    segments = layout.kind == "labels"
    scales = []
    for level, (grid, factor) in enumerate(zip(layout.levels, factors, strict=True)):
        nm = [float(v) for v in reversed(np.round(size_um * factor * 1000.0, 6).tolist())]
        scale: Json = {
            "key": "_".join(f"{v:.10g}" for v in nm),
            "size": list(reversed(grid.shape)),
            "resolution": nm,
            "voxel_offset": [int(v) for v in reversed(offset // factor)],
            "chunk_sizes": [list(reversed(layout.chunk_of(level)))],
            "encoding": "raw",
        }
        if segments and layout.dtype.name in ("uint32", "uint64"):
            scale["encoding"] = "compressed_segmentation"
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        if layout.sharded:
            within = sum(layout.shard_bits(level))
            scale["sharding"] = {
                "@type": "neuroglancer_uint64_sharded_v1",
                # One minishard a shard: a reader needs two small requests before its first chunk, no more.
                "preshift_bits": within,
                "hash": "identity",
                "minishard_bits": 0,
                "shard_bits": sum(layout.grid_bits(level)) - within,
                "minishard_index_encoding": "gzip",
                "data_encoding": "gzip",
            }
        scales.append(scale)
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if segments else "image",
        "data_type": layout.dtype.name,
        "num_channels": layout.channels,
        "scales": scales,
        KEY: own,
    }


def precomputed_arrays(layout: Layout) -> tuple[StoredArray, ...]:
    """Return the arrays of the levels; they exist as soon as the ``info`` does."""
    return tuple(_array(layout.path, level) for level in range(len(layout.levels)))


def _stored(path: str, info: Json, level: int) -> StoredArray:
    scale = info["scales"][level]
    if scale.get("encoding") not in _ENCODINGS:
        raise InputError(
            f"expected chunks of {path} encoded as {', '.join(_ENCODINGS)}, got {scale.get('encoding')}: "
            "transcode it with the program that wrote it"
        )
    gzipped = not is_remote(path) and "sharding" not in scale and has_gzipped_chunks(Path(path) / scale["key"])
    return GzippedArray(path, info, level) if gzipped else _array(path, level)


def _array(path: str, level: int) -> StoredArray:
    return StoredArray(path, {"driver": "neuroglancer_precomputed", "scale_index": level}, "xyzc")


def _ratio(coarse: Grid, fine: Grid) -> NDArray[np.int64]:
    return np.rint(np.divide(coarse.voxel_size_um, fine.voxel_size_um)).astype(np.int64)


def _reversed(xyz: Any) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in xyz)
    return z, y, x


def _reversed_float(xyz: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in xyz)
    return z, y, x
