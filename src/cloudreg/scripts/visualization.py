"""2021: Neuroglancer states and links."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.io import open_volume
from cloudreg.io.credentials import S3Access
from cloudreg.scripts._legacy import moved, precomputed
from cloudreg.scripts._s3url import S3Url

moved("visualization", "cloudreg view")

__all__ = ["S3Url", "create_viz_link", "get_layer_json", "get_neuroglancer_json", "get_output_dimensions_json"]

_RESOLUTION = np.array([1e-4] * 3)
_PATIENCE_S = 30


def get_output_dimensions_json(output_resolution: ArrayLike) -> dict[str, list[Any]]:
    """Return Neuroglancer's description of a space with voxels of this size x, y, z, in metres.

    Examples
    --------
    >>> get_output_dimensions_json([1e-5, 1e-5, 2e-5])
    {'x': [1e-05, 'm'], 'y': [1e-05, 'm'], 'z': [2e-05, 'm']}
    """
    x, y, z = np.asarray(output_resolution, dtype=float).tolist()
    return {"x": [x, "m"], "y": [y, "m"], "z": [z, "m"]}


def get_layer_json(s3_layer_path: str, affine_matrix: ArrayLike, output_resolution: ArrayLike) -> dict[str, Any]:
    """Return Neuroglancer's description of one layer.

    Parameters
    ----------
    s3_layer_path
        A precomputed volume; its ``info`` is read for whether it is an image or a segmentation.
    affine_matrix
        4 x 4, or 3 x 3 for 2D data; x, y, z, its translation in micrometres.
    output_resolution
        Voxel size x, y, z in which the layer is shown, metres.
    """
    matrix = _four_by_four(affine_matrix)[:3]
    # Neuroglancer takes the linear part between lengths, and the translation in voxels of the output.
    matrix[:, 3] *= 1e-6 / np.asarray(output_resolution, dtype=float)
    volume = open_volume(precomputed(s3_layer_path))
    return {
        "type": "segmentation" if volume.kind == "labels" else "image",
        "source": {
            "url": "precomputed://" + _web_address(s3_layer_path),
            "transform": {
                "matrix": matrix.tolist(),
                "outputDimensions": get_output_dimensions_json(output_resolution),
            },
        },
        "name": s3_layer_path.rstrip("/").rpartition("/")[2],
    }


def get_neuroglancer_json(
    s3_layer_paths: Sequence[str], affine_matrices: Sequence[ArrayLike], output_resolution: ArrayLike
) -> dict[str, Any]:
    """Return a Neuroglancer state that shows layers, each with its matrix; see `get_layer_json`."""
    if len(s3_layer_paths) != len(affine_matrices):
        raise InputError(f"expected a matrix for each of {len(s3_layer_paths)} layers, got {len(affine_matrices)}")
    layers = [
        get_layer_json(path, matrix, output_resolution)
        for path, matrix in zip(s3_layer_paths, affine_matrices, strict=True)
    ]
    names = [layer["name"] for layer in layers]
    for number, layer in enumerate(layers):
        # Neuroglancer shows only one layer of a name.
        if names.count(layer["name"]) > 1:
            layer["name"] += f"_{number}"
    return {"dimensions": get_output_dimensions_json(output_resolution), "layers": layers, "layout": "4panel"}


def create_viz_link(
    s3_layer_paths: Sequence[str],
    affine_matrices: Sequence[ArrayLike] | None = None,
    shader_controls: str | None = None,
    url: str | None = "https://json.neurodata.io/v1",
    neuroglancer_link: str = "https://ara.viz.neurodata.io/?json_url=",
    output_resolution: ArrayLike = _RESOLUTION,
) -> str:
    """Return a link that shows volumes in Neuroglancer.

    Parameters
    ----------
    s3_layer_paths
        Precomputed volumes.
    affine_matrices
        See `get_layer_json`; by default none is moved.
    shader_controls
        Shader of the image layers, or a JSON object of settings of its controls.
    url
        State server, to which the state is posted; without one, the link holds the whole state itself.
    neuroglancer_link
        Start of the link.
    output_resolution
        Voxel size x, y, z in which the layers are shown, metres.

    Raises
    ------
    StoreUnreachableError
        If the state server does not take the state.
    """
    matrices = [np.eye(4)] * len(s3_layer_paths) if affine_matrices is None else affine_matrices
    state = get_neuroglancer_json(s3_layer_paths, matrices, output_resolution)
    if shader_controls is not None:
        for layer in state["layers"]:
            if layer["type"] == "image":
                layer |= _shader(shader_controls)
    if not url:
        viewer = neuroglancer_link.partition("?")[0]
        return f"{viewer}#!{urllib.parse.quote(json.dumps(state, separators=(',', ':')))}"
    return neuroglancer_link + _post(state, url)


def _post(state: dict[str, Any], url: str) -> str:
    """Return the address under which a state server keeps a state."""
    request = urllib.request.Request(url, json.dumps(state).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return str(json.load(answer)["uri"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreUnreachableError(
            f"the state server {url} did not take the state ({error}): give url=None for a link that holds it itself"
        ) from error


def _shader(text: str) -> dict[str, Any]:
    try:
        controls = json.loads(text)
    except ValueError:
        return {"shader": text}
    return {"shaderControls": controls}


def _four_by_four(matrix: ArrayLike) -> NDArray[np.float64]:
    given = np.array(matrix, dtype=float)
    if given.shape not in ((3, 3), (4, 4)) or not np.isfinite(given).all():
        raise InputError(f"expected a matrix of 4 x 4 numbers, or 3 x 3 for 2D data, got shape {given.shape}")
    if given.shape == (4, 4):
        return given
    result = np.eye(4)
    result[:2, :2], result[:2, 3] = given[:2, :2], given[:2, 2]
    return result


def _web_address(path: str) -> str:
    """Return where a browser finds a volume: S3's own form, or that of the server in use."""
    if not path.removeprefix("precomputed://").startswith("s3://"):
        return path.removeprefix("precomputed://")
    place = S3Url.of(path)
    endpoint = S3Access.of(place.bucket).endpoint
    return place.url if endpoint is None else f"{endpoint.rstrip('/')}/{place.bucket}/{place.key}"
