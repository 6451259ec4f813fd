"""How a volume is turned: letters, rotation, scale and translation as one affine, x y z in micrometres."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.scripts._legacy import three
from cloudreg.space import axes_between
from cloudreg.transforms import turned


def about_middles(
    translation: ArrayLike,
    rotation: ArrayLike,
    source: str,
    destination: str,
    scale: ArrayLike,
    middles: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the affine (4, 4) that brings one middle to another, turned about it and moved from there.

    Parameters
    ----------
    translation, rotation
        Along and about x, y and z of the destination, micrometres and degrees.
    source, destination
        Three letters each, where x, y and z go to.
    scale
        Factor, or one for each axis of the destination; translations are scaled too.
    middles
        Of the source and of the destination, x y z in micrometres.
    """
    factors = three(scale, "scale")
    if not (factors > 0).all():
        raise InputError(f"expected scales above 0, got {factors.tolist()}")
    # x y z read backwards is z y x, of which `turned` speaks.
    axes = _permutation(source, destination)[::-1, ::-1]
    linear = turned(axes, three(rotation, "rotation")[::-1], factors[::-1])[::-1, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = middles[1] + factors * three(translation, "translation") - affine[:3, :3] @ middles[0]
    return affine


def _permutation(source: str, destination: str) -> NDArray[np.float64]:
    """Return the matrix (3, 3) that reorients axes, with a warning if it is a mirror."""
    matrix = axes_between(source, destination, allow_mirror=True)
    if np.linalg.det(matrix) < 0:
        warnings.warn(
            f"{source} and {destination} are mirror images: left and right are swapped", UserWarning, stacklevel=3
        )
    return matrix
