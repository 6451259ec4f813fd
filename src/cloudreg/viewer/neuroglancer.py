"""Neuroglancer's state of some volumes: what each is, where to get it, and how bright it is.

References
----------
.. [1] https://github.com/google/neuroglancer/blob/master/src/ui/url_hash_binding.ts
"""

from __future__ import annotations

import itertools
import json
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io import Volume
from cloudreg.io.objects import read_json
from cloudreg.io.precomputed import PREFIX

_DRIVERS = {"ome-zarr": "zarr", "zarr": "zarr", "n5": "n5", "precomputed": "precomputed", "nifti": "nifti"}
_COLOURS = ("#00ff66", "#ff3366", "#3399ff", "#ffcc00", "#cc66ff", "#66ffff")
_PANEL_PIXELS = 500.0


@dataclass(frozen=True)
class Layer:
    """A volume, its name in the viewer, the web address (or ``s3://``, ``gs://``) where a browser finds it.

    One that is not ``shown`` is there, and waits for a click on its name.
    """

    name: str
    volume: Volume
    address: str
    shown: bool = True


def neuroglancer_state(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the JSON state that shows volumes over each other, in their common physical space.

    Labels lie over the images; several images are added up in colours. Contrast goes from the 1st to the 99.8th
    percentile of each image's coarsest level.

    Raises
    ------
    InputError
        If Neuroglancer can't read a volume's format.
    """
    images = [layer for layer in layers if layer.volume.kind == "image"]
    lower = np.min([x.volume.grid.bounds_um()[0] for x in layers], axis=0)
    upper = np.max([x.volume.grid.bounds_um()[1] for x in layers], axis=0)
    voxel = np.array(layers[0].volume.grid.voxel_size_um)
    centre = (lower + upper) / 2 / voxel
    extent = float(((upper - lower) / voxel.min()).max())
    described: list[dict[str, Any]] = []
    channels = sum(layer.volume.channels for layer in images)
    colours = itertools.cycle(_COLOURS if channels > 1 else ("#ffffff",))
    for layer in [*images, *(layer for layer in layers if layer.volume.kind == "labels")]:
        described += [{**one, "visible": layer.shown} for one in _layers(layer, colours)]
    return {
        "dimensions": _dimensions(layers[0].volume),
        "position": [float(c) for c in centre[::-1]],
        "crossSectionScale": extent / _PANEL_PIXELS,
        "projectionScale": extent * 1.5,
        "layers": described,
        "layout": "4panel",
    }


def viewer_link(state: dict[str, Any], viewer: str) -> str:
    """Return the address at which a Neuroglancer on the web shows a state."""
    return f"{viewer.rstrip('/')}/#!{urllib.parse.quote(json.dumps(state, separators=(',', ':')))}"


def own_viewer(state: dict[str, Any], host: str) -> Any:
    """Start the Neuroglancer that is installed here, and show a state: nothing leaves this machine then.

    Returns
    -------
    neuroglancer.Viewer or None
        It shows for as long as it is held; None where the package is not installed.
    """
    try:
        import neuroglancer
    except ImportError:
        return None
    neuroglancer.set_server_bind_address(host)
    viewer = neuroglancer.Viewer()
    viewer.set_state(neuroglancer.ViewerState(state))
    return viewer


def _layers(layer: Layer, colours: Iterator[str]) -> list[dict[str, Any]]:
    """Describe a volume: an image has one layer a channel."""
    source = _source(layer)
    if layer.volume.kind == "labels":
        return [{"type": "segmentation", "name": layer.name, "source": source, "selectedAlpha": 0.35}]
    names = layer.volume.channel_names or [str(channel) for channel in range(layer.volume.channels)]
    found = []
    for channel in range(layer.volume.channels):
        described: dict[str, Any] = {
            "type": "image",
            "name": layer.name if layer.volume.channels == 1 else f"{layer.name} {names[channel]}",
            "source": source,
            "blend": "additive",
            "opacity": 1,
            "shader": _shader(layer.volume, channel, next(colours)),
        }
        if layer.volume.channels > 1 and layer.volume.format != "precomputed":
            described |= {"localDimensions": {"c'": [1, ""]}, "localPosition": [channel]}
        found.append(described)
    return found


def _source(layer: Layer) -> str | dict[str, Any]:
    volume = layer.volume
    if volume.format not in _DRIVERS:
        raise InputError(
            f"expected OME-Zarr, Zarr, N5, precomputed or NIfTI to show, got {volume.format} at {volume.path}: make "
            f"one first, by cloudreg convert {volume.path} NEW.ome.zarr"
        )
    address = f"{_DRIVERS[volume.format]}://{layer.address}"
    if volume.format != "precomputed":
        return address
    # There, Neuroglancer takes the place of the first voxel for its outer corner's, we (as in all formats) for its
    # centre's; and it does not know of axes that are turned. Its matrix is between lengths, but for the last column,
    # and starts from voxels that are counted from the volume's offset.
    info = read_json(volume.path.removeprefix(PREFIX), "info") or {}
    offset = np.array(info["scales"][0].get("voxel_offset", (0, 0, 0)), dtype=float)[::-1]
    voxel_um = np.array(volume.grid.voxel_size_um)
    matrix = np.empty((3, 4))
    matrix[:, :3] = (volume.grid.affine[:3, :3] / voxel_um)[::-1, ::-1]
    matrix[:, 3] = (volume.grid.index_to_um(-offset - 0.5) / voxel_um)[::-1]
    rounded = [[round(float(value), 9) for value in row] for row in matrix]
    return {"url": address, "transform": {"matrix": rounded, "outputDimensions": _dimensions(volume)}}


def _dimensions(volume: Volume) -> dict[str, Any]:
    return {axis: [round(um * 1e-6, 15), "m"] for axis, um in zip("xyz", volume.grid.voxel_size_um[::-1], strict=True)}


def _shader(volume: Volume, channel: int, colour: str) -> str:
    coarse = volume.read(level=len(volume.levels) - 1, channel=channel)
    step = max(1, coarse.size // 1_000_000)
    low, high = (float(v) for v in np.nanpercentile(coarse.ravel()[::step], (1, 99.8)))
    if not high > low:
        high = low + 1
    which = f", channel=[{channel}]" if volume.format == "precomputed" and volume.channels > 1 else ""
    return (
        f"#uicontrol invlerp normalized(range=[{low:g}, {high:g}]{which})\n"
        f'#uicontrol vec3 colour color(default="{colour}")\n'
        "void main() { emitRGB(colour * normalized()); }\n"
    )
