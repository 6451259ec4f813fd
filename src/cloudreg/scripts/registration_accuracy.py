"""2021: how far landmarks in a registered volume are from those in the atlas."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.registration import open_registration
from cloudreg.scripts._legacy import moved, run
from cloudreg.scripts._matlab import CenteredTransform, read_centered
from cloudreg.scripts._precomputed import Scale, finest_scale
from cloudreg.space import axes_between

moved("registration_accuracy", "cloudreg evaluate --points-target --points-atlas")

__all__ = ["compute_regisration_accuracy"]

_UNITS = {"m": 1e6, "mm": 1e3, "um": 1.0, "µm": 1.0, "nm": 1e-3}


def compute_regisration_accuracy(
    target_viz_link: str,
    atlas_viz_link: str,
    affine_path: str,
    velocity_path: str,
    velocity_field_vsize: Sequence[float],
    atlas_orientation: str = "PIR",
    target_orientation: str = "LPS",
) -> NDArray[np.float64]:
    """Return how far each landmark of the target, carried to the atlas, is from its counterpart, in micrometres.

    Parameters
    ----------
    target_viz_link, atlas_viz_link
        Neuroglancer links (or files of a state) with the volume in one layer and points in annotation layers, both in
        the axes of the volume. Points belong together by their descriptions, or where they have none by their order.
    affine_path, velocity_path
        A registration folder and nothing; or the MATLAB files of CloudReg 1, here or in a bucket; or nothing, for the
        letters alone, from middle to middle.
    velocity_field_vsize
        Voxel size of the MATLAB velocity, x y z in micrometres.
    atlas_orientation, target_orientation
        Letters of both volumes.
    """
    target_points, target = _read_link(target_viz_link)
    atlas_points, atlas = _read_link(atlas_viz_link)
    names = _common_names(target_points, atlas_points)
    observed = np.array([target_points[name] for name in names])
    expected = np.array([atlas_points[name] for name in names])
    if affine_path and Path(affine_path).is_dir():
        opened = open_registration(affine_path)
        mapped, _ = opened.transform.target_to_atlas(opened.target_grid.index_to_um(target.index(observed)))
        found = atlas.points_um(opened.atlas_frame.grid.um_to_index(mapped))
    else:
        transform = _letters_only(atlas_orientation, target_orientation)
        if affine_path:
            transform = read_centered(affine_path, velocity_path, velocity_field_vsize)
        found = transform.target_to_atlas(observed - target.middle_um) + atlas.middle_um
    distances = np.linalg.norm(found - expected, axis=1)
    for name, distance in zip(names, distances, strict=True):
        print(f"{name}: {distance:.1f} um")
    print(f"mean {distances.mean():.1f} um, standard deviation {distances.std():.1f} um")
    return np.asarray(distances)


def _letters_only(atlas: str, target: str) -> CenteredTransform:
    affine = np.eye(4)
    affine[:3, :3] = axes_between(atlas, target)
    return CenteredTransform(affine, None, np.ones(3))


def _read_link(link: str) -> tuple[dict[str, NDArray[np.float64]], Scale]:
    """Return the points of a state, x y z in um, and the volume's finest scale."""
    state = _state(link)
    scale = None
    points: dict[str, NDArray[np.float64]] = {}
    for layer in state.get("layers", []):
        if layer.get("type") in ("image", "segmentation") and scale is None:
            source = layer["source"]
            url = source if isinstance(source, str) else source["url"]
            scale = finest_scale(url)
        unit = _units_um(layer, state)
        for annotation in layer.get("annotations", []):
            if annotation.get("type", "point") == "point":
                name = (annotation.get("description") or f"point {len(points) + 1}").strip()
                if name in points:
                    raise InputError(f"expected points of different names in {link}, got two of {name!r}")
                points[name] = np.asarray(annotation["point"][:3], dtype=float) * unit
    if scale is None or not points:
        raise InputError(f"expected a volume and points in the state of {link}, got layers without: mark points")
    return points, scale


def _units_um(layer: dict[str, Any], state: dict[str, Any]) -> NDArray[np.float64]:
    """Return the lengths of the units in which a layer's points are."""
    source = layer.get("source")
    own = source.get("transform", {}).get("outputDimensions") if isinstance(source, dict) else None
    dimensions = own or state.get("dimensions")
    if dimensions is None:
        raise InputError("expected a state of Neuroglancer with dimensions, got one without")
    return np.array([float(value) * _UNITS[unit] for value, unit in list(dimensions.values())[:3]])


def _state(link: str) -> dict[str, Any]:
    """Return the state that a link, or a file, holds or leads to."""
    try:
        if "#!" in link:
            text = urllib.parse.unquote(link.partition("#!")[2])
            if not text.startswith(("http://", "https://")):
                return dict(json.loads(text))
            link = text
        link = link.partition("json_url=")[2] or link
        if link.startswith(("http://", "https://")):
            with urllib.request.urlopen(link, timeout=30) as answer:
                return dict(json.load(answer))
        return dict(json.loads(Path(link).read_text()))
    except ValueError as error:
        raise InputError(f"expected a state of Neuroglancer at {link}: {error}") from error
    except OSError as error:
        kind = StoreUnreachableError if link.startswith("http") else InputError
        raise kind(f"expected a state of Neuroglancer at {link}: {error}") from error


def _common_names(target: dict[str, Any], atlas: dict[str, Any]) -> list[str]:
    names = [name for name in target if name in atlas]
    if not names:
        raise InputError("expected points of the same names in both states, got none in common")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.registration_accuracy", description="landmark errors")
    parser.add_argument("-target_viz_link", required=True, help="link with the volume and its points")
    parser.add_argument("-atlas_viz_link", required=True, help="link with the atlas and its points")
    parser.add_argument("--affine_path", default="", help="registration folder, or affine of 2021")
    parser.add_argument("--velocity_path", default="", help="velocity of 2021")
    parser.add_argument(
        "--velocity_voxel_size",
        dest="velocity_field_vsize",
        nargs="+",
        type=float,
        default=[50.0] * 3,
        help="x y z, um",
    )
    parser.add_argument("--atlas_orientation", default="PIR", help="default: %(default)s")
    parser.add_argument("--target_orientation", default="LPS", help="default: %(default)s")
    return run(lambda given: compute_regisration_accuracy(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
