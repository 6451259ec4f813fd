"""OME-Zarr 0.6 (RFC-5): a scene that says how two coordinate systems belong together.

The scene names the systems ``atlas`` and ``target`` and holds one bijection between them: forward
``sequence[displacements, affine]``, inverse ``sequence[affine, displacements]``, in micrometres, z y x. The
displacements are images of the scene's group ``coordinateTransformations``.

References
----------
.. [1] https://ngff.openmicroscopy.org/0.6/, "coordinateTransformations" and "scene" metadata.
.. [2] https://ngff.openmicroscopy.org/rfc/4/, the sides of the brain that axes go between.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cloudreg.errors import InputError
from cloudreg.space import Box
from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.frames import Frame, over_both
from cloudreg.transforms.transform import Transform

_VERSION = "0.6"
_GROUP = "coordinateTransformations"
_SIDES = dict(zip("apsilr", ("anterior", "posterior", "superior", "inferior", "left", "right"), strict=True))
_OPPOSITE = dict(zip("apsilr", "paisrl", strict=True))

Json = dict[str, Any]


def write_rfc5(transform: Transform, atlas: Frame, target: Frame, folder: Path) -> dict[str, str]:
    """Write the scene and its displacements; return what each part does.

    Raises
    ------
    InputError
        If the nodes don't lie along the physical axes: an RFC-5 field is placed by a scale and a translation.
    """
    whole = over_both(transform, atlas, target)
    _write_group(folder / _GROUP, {})
    _write_displacements(whole.to_target, folder / _GROUP / "atlas_to_target")
    _write_displacements(whole.to_atlas, folder / _GROUP / "target_to_atlas")
    bijection = {
        "type": "bijection",
        "input": {"name": "atlas"},
        "output": {"name": "target"},
        "forward": _sequence("atlas to target", _displacements("atlas_to_target"), _affine(whole.affine)),
        "inverse": _sequence("target to atlas", _affine(whole.inverse_affine), _displacements("target_to_atlas")),
    }
    systems = [
        {"name": name, "axes": _axes(frame.orientation)} for name, frame in (("atlas", atlas), ("target", target))
    ]
    scene = {"coordinateSystems": systems, "coordinateTransformations": [bijection]}
    _write_group(folder, {"scene": scene})
    return {
        "zarr.json": "the scene: coordinate systems atlas and target, and the bijection between them",
        _GROUP: "the displacements that it refers to",
    }


def _axes(orientation: str | None) -> list[Json]:
    axes: list[Json] = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    for axis, letter in zip(axes, orientation or "", strict=False):
        axis["orientation"] = {"type": "anatomical", "value": f"{_SIDES[letter]}-to-{_SIDES[_OPPOSITE[letter]]}"}
    return axes


def _sequence(name: str, *transformations: Json) -> Json:
    return {"type": "sequence", "name": name, "transformations": list(transformations)}


def _displacements(name: str) -> Json:
    return {"type": "displacements", "path": f"{_GROUP}/{name}", "interpolation": "linear"}


def _affine(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> Json:
    return {"type": "affine", "affine": matrix[:3].tolist()}


def _write_displacements(field: DisplacementField, folder: Path) -> None:
    """Write a field as an image of three components, whose systems 0.5 has no words for."""
    from cloudreg.io import create_volume

    if not field.grid.is_axis_aligned:
        raise InputError(
            "expected displacement nodes along the physical axes for RFC-5, got turned ones: compose first"
        )
    written = folder.with_name(f"{folder.name}.zarr")
    writer = create_volume(str(written), field.grid, np.dtype(np.float32), channels=3, levels=1)
    writer.write(Box.whole(field.grid.shape), field.vectors, channel=None)
    writer.complete()
    axes = [{"name": "c", "type": "displacement", "discrete": True}, *_axes(None)]
    place = _sequence(
        "nodes to micrometres",
        {"type": "scale", "scale": [1.0, *field.grid.voxel_size_um]},
        {"type": "translation", "translation": [0.0, *field.grid.origin_um.tolist()]},
    )
    level = {"path": "0", "coordinateTransformations": [{**place, "input": {"path": "0"}, "output": {"name": "atlas"}}]}
    image = {"coordinateSystems": [{"name": "atlas", "axes": axes}], "datasets": [level], "name": folder.name}
    _write_group(written, {"multiscales": [image]})
    written.rename(folder)


def _write_group(folder: Path, ome: Json) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    attributes = {"ome": {"version": _VERSION, **ome}} if ome else {}
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(json.dumps(node, indent=2) + "\n")
