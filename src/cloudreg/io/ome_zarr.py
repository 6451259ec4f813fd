"""OME-Zarr: reads 0.4 (Zarr v2) and 0.5 (Zarr v3), the older and newer ones as far as they agree; writes 0.5.

A level's ``scale`` and ``translation`` map the index of a voxel's *centre* to space, so level k of a pyramid is
translated by half of what its voxels are larger.

References
----------
.. [1] J. Moore et al., "OME-Zarr: a cloud-optimized bioimaging file format", Histochem. Cell Biol. 160 (2023);
   https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.chunked import ChunkedSource, StoredArray
from cloudreg.io.dtypes import held_dtype, likely_kind
from cloudreg.io.layout import KEY, Layout
from cloudreg.io.lengths import VoxelSizeUnknownError, likely_micrometres, micrometres_per
from cloudreg.io.objects import Json
from cloudreg.io.volume import Volume
from cloudreg.space import Grid


def read_ome_zarr(path: str, attributes: Json, driver: str, *, ignore_scale: bool) -> Volume:
    """Describe the first multiscale image of a Zarr group.

    Parameters
    ----------
    path, attributes
        The group and its attributes (of Zarr v3: what stands under ``ome`` merged in).
    driver
        ``"zarr"`` or ``"zarr3"``.
    ignore_scale
        The caller knows the voxel size, so units and scales of the file are not looked at.
    """
    multiscale = attributes["multiscales"][0]
    datasets = multiscale.get("datasets") or []
    if not datasets:
        raise InputError(f"expected at least one level in the multiscales of {path}, got none: the file is incomplete")
    paths = [f"{path}/{dataset['path']}" for dataset in datasets]
    opened = [StoredArray(p, {"driver": driver}, "").open() for p in paths]
    names, units = _axes(multiscale, opened[0].rank, path)
    letters = _letters(names, path)
    shapes = [_zyx(letters, s.shape, 1) for s in opened]
    if any(n != 1 for a, n in zip(letters, opened[0].shape, strict=True) if a == "t"):
        raise InputError(f"expected one time point in {path}, got {opened[0].shape[letters.index('t')]}: cut one out")
    own = attributes.get(KEY) or {}
    notes: tuple[str, ...] = ()
    if ignore_scale:
        grids = _by_shape(shapes)
    elif "affines" in own:
        grids = [Grid(s, np.asarray(a, dtype=float)) for s, a in zip(shapes, own["affines"], strict=True)]
    else:
        matrices = [
            _matrix([*d.get("coordinateTransformations", []), *_common(multiscale)], len(names)) for d in datasets
        ]
        spatial = [i for i, a in enumerate(letters) if a in "zyx"]
        if any(u is None for i, u in enumerate(units) if i in spatial):
            spacing = [float(np.linalg.norm(matrices[0][:-1, i])) for i in spatial]
            um = likely_micrometres([opened[0].shape[i] for i in spatial], spacing)
            notes = (f"no unit of length in the file: taken as {'micrometres' if um == 1 else 'millimetres'}",)
            factors = [um] * len(names)
        else:
            factors = [micrometres_per(u or "", path) if i in spatial else 1.0 for i, u in enumerate(units)]
        grids = [_grid(s, m, letters, factors) for s, m in zip(shapes, matrices, strict=True)]
    dtype = held_dtype(opened[0].dtype.numpy_dtype, path)
    return Volume(
        path=path,
        format="ome-zarr",
        kind=own.get("kind") or ("labels" if "image-label" in attributes else likely_kind(dtype)),
        dtype=dtype,
        channels=opened[0].shape[letters.index("c")] if "c" in letters else 1,
        levels=tuple(grids),
        chunk=_zyx(letters, opened[0].chunk_layout.read_chunk.shape, 1),
        source=ChunkedSource(tuple(StoredArray(p, {"driver": driver}, letters) for p in paths)),
        orientation=own.get("orientation"),
        channel_names=_channel_names(attributes, own),
        notes=notes,
    )


def ome_zarr_metadata(layout: Layout, *, complete: bool) -> Json:
    """Return the ``zarr.json`` of a volume's group."""
    has_channels = layout.channels > 1
    lead = [1.0] if has_channels else []
    axes: list[Json] = [{"name": "c", "type": "channel"}] if has_channels else []
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*lead, *grid.voxel_size_um]},
                {"type": "translation", "translation": [*(0.0 for _ in lead), *grid.origin_um.tolist()]},
            ],
        }
        for level, grid in enumerate(layout.levels)
    ]
    own = layout.own_metadata(complete=complete)
    if not layout.levels[0].is_axis_aligned:
        # OME-Zarr 0.5 has no rotation: other programs see the volume in its array axes, we see it where it is.
        own["affines"] = [grid.affine.tolist() for grid in layout.levels]
    ome: Json = {"version": "0.5", "multiscales": [{"name": "volume", "axes": axes, "datasets": datasets}]}
    if len(layout.levels) > 1:
        ome["multiscales"][0]["type"] = "mode" if layout.kind == "labels" else "mean"
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, KEY: own}}


def ome_zarr_arrays(layout: Layout) -> tuple[StoredArray, ...]:
    """Return the arrays of the levels, to be opened or created."""
    lead = [layout.channels] if layout.channels > 1 else []
    axes = "czyx" if lead else "zyx"
    return tuple(
        StoredArray(
            f"{layout.path}/{level}",
            {
                "driver": "zarr3",
                "open": True,
                "create": True,
                "metadata": {
                    "shape": [*lead, *grid.shape],
                    "data_type": layout.dtype.name,
                    "chunk_grid": _named("regular", chunk_shape=[*(1 for _ in lead), *layout.shard_of(level)]),
                    "codecs": _codecs(layout, [*(1 for _ in lead), *layout.chunk_of(level)]),
                    "fill_value": 0,
                    "dimension_names": list(axes),
                },
            },
            axes,
        )
        for level, grid in enumerate(layout.levels)
    )


def _codecs(layout: Layout, chunk: list[int]) -> list[Json]:
    # Bits of equal weight side by side compress microscopy better than bytes, and are twice as fast to compress.
    blosc = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "typesize": layout.dtype.itemsize, "blocksize": 0}
    codecs = [_named("bytes", endian="little"), _named("blosc", **blosc)]
    if not layout.sharded:
        return codecs
    index = [_named("bytes", endian="little"), {"name": "crc32c"}]
    return [_named("sharding_indexed", chunk_shape=chunk, codecs=codecs, index_codecs=index)]


def _named(name: str, **configuration: Any) -> Json:
    return {"name": name, "configuration": configuration}


def _axes(multiscale: Json, rank: int, path: str) -> tuple[list[Json], list[str | None]]:
    """Return axes as objects, and their units; version 0.3 names them only, older ones not even that."""
    listed = multiscale.get("axes")
    if listed is None and multiscale.get("coordinateSystems"):
        listed = multiscale["coordinateSystems"][0]["axes"]  # 0.6
    if listed is None:
        listed = list("tczyx"[-rank:])
    axes = [{"name": a} if isinstance(a, str) else dict(a) for a in listed]
    if len(axes) != rank:
        raise InputError(
            f"expected as many axes as dimensions in {path}, got {len(axes)} for {rank}: mend its metadata"
        )
    return axes, [a.get("unit") for a in axes]


def _letters(axes: list[Json], path: str) -> str:
    letters = ""
    for axis in axes:
        name = str(axis["name"]).lower()
        letters += {"channel": "c", "time": "t"}.get(str(axis.get("type")), name)
    if len(set(letters)) != len(axes) or not set(letters) <= set("tczyx") or not {"y", "x"} <= set(letters):
        raise InputError(f"expected axes out of t, c, z, y, x in {path}, got {[a['name'] for a in axes]}")
    return letters


def _zyx(letters: str, sizes: Any, absent: int) -> tuple[int, int, int]:
    z, y, x = (int(sizes[letters.index(a)]) if a in letters else absent for a in "zyx")
    return z, y, x


def _common(multiscale: Json) -> list[Json]:
    """Return the transformations after those of a level; 0.6 uses the field for links between systems."""
    return [] if "coordinateSystems" in multiscale else multiscale.get("coordinateTransformations", [])


def _matrix(transformations: list[Json], rank: int) -> NDArray[np.float64]:
    """Compose transformations, the first applied first, into one homogeneous matrix over the stored axes."""
    result = np.eye(rank + 1)
    for item in transformations:
        step = np.eye(rank + 1)
        match item.get("type"):
            case "identity":
                pass
            case "scale":
                step[:-1, :-1] = np.diag(item["scale"])
            case "translation":
                step[:-1, -1] = item["translation"]
            case "rotation":
                step[:-1, :-1] = item["rotation"]
            case "affine":
                step[:-1] = item["affine"]
            case "sequence":
                step = _matrix(item["transformations"], rank)
            case other:
                raise VoxelSizeUnknownError(
                    f"expected a scale, translation, rotation or affine in an OME-Zarr, got {other!r}: "
                    "give --voxel-size Z Y X"
                )
        result = step @ result
    return result


def _grid(shape: tuple[int, int, int], matrix: NDArray[np.float64], letters: str, factors: list[float]) -> Grid:
    """Pick z, y, x out of the stored axes, in micrometres; a missing z is as thick as y is wide."""
    affine = np.eye(4)
    present = [i for i, a in enumerate("zyx") if a in letters]
    stored = [letters.index(a) for a in "zyx" if a in letters]
    for row, i in zip(present, stored, strict=True):
        affine[row, present] = factors[i] * matrix[i, stored]
        affine[row, 3] = factors[i] * matrix[i, -1]
    if "z" not in letters:
        affine[0, 0] = np.linalg.norm(affine[:3, 1])
    return Grid(shape, affine)


def _by_shape(shapes: list[tuple[int, int, int]]) -> list[Grid]:
    """Return grids of voxel size 1 whose levels are as much coarser as they have fewer voxels."""
    finest = Grid.from_spacing(shapes[0], (1.0, 1.0, 1.0))
    grids = []
    for shape in shapes:
        step = [max(1, round(n / m)) for n, m in zip(shapes[0], shape, strict=True)]
        grids.append(Grid(shape, finest.downsampled(step).affine))
    return grids


def _channel_names(attributes: Json, own: Json) -> tuple[str, ...] | None:
    if "channel_names" in own:
        return tuple(own["channel_names"])
    listed = (attributes.get("omero") or {}).get("channels") or []
    names = [c.get("label") for c in listed if isinstance(c, dict)]
    return tuple(str(n) for n in names) if names and all(names) else None
