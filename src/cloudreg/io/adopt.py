"""Levels for a volume that another program wrote, in its own chunks and codec.

Its metadata is changed last, when all voxels are there: until then other programs see the volume as it was.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io.chunked import ChunkedSource, StoredArray
from cloudreg.io.layout import Layout
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.objects import Json, read_jsons, write_json
from cloudreg.io.opening import open_volume
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.volume import Volume
from cloudreg.io.writer import VolumeWriter
from cloudreg.space import Grid


@dataclass(frozen=True, eq=False)
class AdoptedWriter(VolumeWriter):
    """Writes the new levels of another program's volume.

    Parameters
    ----------
    metadata
        The files that make the levels known, by name; written by `complete`.
    """

    metadata: tuple[tuple[str, Json], ...] = ()

    def block_shape(self, level: int = 0) -> tuple[int, int, int]:
        """Smallest box, in voxels of the level, that may be written independently of others, z y x."""
        return self.arrays[level].block_shape()

    def complete(self) -> Volume:
        """Make the levels known and return the volume."""
        for name, content in self.metadata:
            write_json(self.layout.path, name, content)
        return open_volume(self.path)


def adopt_volume(volume: Volume) -> AdoptedWriter:
    """Return a writer of the levels that a volume lacks; its finest level stays as it is.

    Raises
    ------
    InputError
        If the volume is no precomputed or OME-Zarr one, or has levels already.
    """
    if volume.format not in ("precomputed", "ome-zarr") or not isinstance(volume.source, ChunkedSource):
        raise InputError(f"expected an OME-Zarr or precomputed volume, got {volume.format} {volume.path}: convert it")
    if len(volume.levels) > 1:
        raise InputError(
            f"expected a volume of one level, got {len(volume.levels)} at {volume.path}, which another program made: "
            "convert it"
        )
    grids = pyramid_grids(volume.grid)
    if volume.format == "precomputed":
        return _precomputed(volume, volume.source.arrays[0], grids)
    return _ome_zarr(volume, volume.source.arrays[0], grids)


def _precomputed(volume: Volume, first: StoredArray, grids: tuple[Grid, ...]) -> AdoptedWriter:
    folder = volume.path.removeprefix(PREFIX)
    info = read_jsons(folder, ["info"])["info"]
    finest = info["scales"][0]
    offset = finest.get("voxel_offset", [0, 0, 0])
    arrays, scales = [first], [finest]
    common = {key: info[key] for key in ("type", "data_type", "num_channels") if key in info}
    for grid in grids[1:]:
        factors = _factors(volume.grid, grid)[::-1]
        if any(o % f for o, f in zip(offset, factors, strict=True)):
            break  # a level must start at a whole voxel of its own
        resolution = [float(r) * f for r, f in zip(finest["resolution"], factors, strict=True)]
        scale = {
            **finest,
            "key": "_".join(f"{v:.10g}" for v in resolution),
            "size": list(grid.shape[::-1]),
            "resolution": resolution,
            "voxel_offset": [o // f for o, f in zip(offset, factors, strict=True)],
        }
        scales.append(scale)
        exact = {key: value for key, value in scale.items() if key not in ("chunk_sizes", "mesh", "skeletons")}
        spec = {
            "driver": "neuroglancer_precomputed",
            "multiscale_metadata": common,
            "scale_metadata": {**exact, "chunk_size": scale["chunk_sizes"][0]},
            "open": True,
            "assume_metadata": True,  # it is not in the info yet
        }
        arrays.append(StoredArray(folder, spec, "xyzc"))
    return _writer(volume, folder, "precomputed", grids[: len(arrays)], arrays, [("info", {**info, "scales": scales})])


def _ome_zarr(volume: Volume, first: StoredArray, grids: tuple[Grid, ...]) -> AdoptedWriter:
    folder = volume.path
    roots = read_jsons(folder, ["zarr.json", ".zattrs", ".zmetadata"])
    new = first.spec["driver"] == "zarr3"
    root, array_file = ("zarr.json", "zarr.json") if new else (".zattrs", ".zarray")
    group = copy.deepcopy(roots[root])
    group.pop("consolidated_metadata", None)
    attributes = group["attributes"].get("ome", group["attributes"]) if new else group
    datasets = attributes["multiscales"][0]["datasets"]
    metadata = read_jsons(first.path, [array_file])[array_file]
    consolidated = copy.deepcopy(roots.get(".zmetadata"))
    arrays = [first]
    for level, grid in enumerate(grids[1:], start=1):
        factors = dict(zip("zyx", _factors(volume.grid, grid), strict=True))
        name = f"{datasets[0]['path']}_level{level}"
        sizes = dict(zip("zyx", grid.shape, strict=True))
        shape = [sizes.get(axis, n) for axis, n in zip(first.axes, metadata["shape"], strict=True)]
        steps = [factors.get(axis, 1) for axis in first.axes]
        datasets.append({"path": name, "coordinateTransformations": _coarser(datasets[0], steps, volume.path)})
        content = {**metadata, "shape": shape}
        write_json(f"{folder}/{name}", array_file, content)
        if consolidated is not None:
            consolidated["metadata"][f"{name}/{array_file}"] = content
        arrays.append(StoredArray(f"{folder}/{name}", {"driver": first.spec["driver"]}, first.axes))
    files = [(root, group)]
    if consolidated is not None:
        consolidated["metadata"][root] = group
        files.append((".zmetadata", consolidated))
    return _writer(volume, folder, "ome-zarr", grids, arrays, files)


def _coarser(dataset: Json, steps: list[int], path: str) -> list[Json]:
    """Return the transformations of a level whose voxels are ``steps`` of the finest's along each stored axis."""
    found = {item.get("type"): item for item in dataset.get("coordinateTransformations", [])}
    if not {"scale"} <= found.keys() <= {"scale", "translation"}:
        raise InputError(f"expected a scale and a translation in {path}, got {', '.join(map(str, found))}: convert it")
    scale = found["scale"]["scale"]
    translation = found.get("translation", {}).get("translation", [0.0] * len(scale))
    return [
        {"type": "scale", "scale": [s * f for s, f in zip(scale, steps, strict=True)]},
        {
            "type": "translation",
            "translation": [t + s * (f - 1) / 2 for t, s, f in zip(translation, scale, steps, strict=True)],
        },
    ]


def _writer(
    volume: Volume,
    folder: str,
    form: Any,
    grids: tuple[Grid, ...],
    arrays: list[StoredArray],
    files: list[tuple[str, Json]],
) -> AdoptedWriter:
    layout = Layout(
        path=folder,
        format=form,
        levels=grids,
        dtype=volume.dtype,
        channels=volume.channels,
        kind=volume.kind,
        chunk=volume.chunk,
        orientation=volume.orientation,
        channel_names=volume.channel_names,
    )
    # Nothing tells whether the finest level is still the one that a stopped run read: all levels are made anew.
    return AdoptedWriter(layout, tuple(arrays), is_new=True, metadata=tuple(files))


def _factors(finest: Grid, grid: Grid) -> list[int]:
    return [int(n) for n in np.rint(np.divide(grid.voxel_size_um, finest.voxel_size_um))]
