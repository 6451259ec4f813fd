"""The families of affine maps from target to atlas that a fit may move in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray


@dataclass(frozen=True)
class AffineGroup:
    """How an affine from target to atlas may change: it is multiplied by maps of both spaces.

    Maps of the target turn and shift it, which leaves its scales along the atlas's axes as they are; maps of the atlas
    may scale and shear it.

    Parameters
    ----------
    of_atlas, of_target
        (n, 4, 4) and (m, 4, 4): Lie algebras of the maps of each space, um.
    """

    of_atlas: NDArray[np.float64]
    of_target: NDArray[np.float64]

    def tangents(self, to_atlas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the directions (n + m, 4, 4) in which ``to_atlas`` may go, as maps of the atlas's space."""
        return np.concatenate([self.of_atlas, to_atlas @ self.of_target @ np.linalg.inv(to_atlas)])

    def moved(self, to_atlas: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``to_atlas`` after steps (n + m,) along `tangents`."""
        there, here = np.split(by, [len(self.of_atlas)])
        left = scipy.linalg.expm(np.tensordot(there, self.of_atlas, 1))
        right = scipy.linalg.expm(np.tensordot(here, self.of_target, 1))
        return np.asarray(left @ to_atlas @ right)


def affine_group(
    kind: str, atlas_centre: NDArray[np.float64], target_centre: NDArray[np.float64], size: float
) -> AffineGroup:
    """Return a group of affine maps.

    Parameters
    ----------
    kind
        ``"rigid"`` (6 parameters: turns and shifts, and keeps the scales of what it starts from), ``"similarity"`` (7:
        and one scale), ``"scales"`` (9: and a scale along each of the atlas's axes) or ``"affine"`` (12).
    atlas_centre, target_centre
        Points about which to turn and scale, um.
    size
        Length of the brain, um: makes a unit of turning and of shifting comparable.
    """
    along = np.eye(3)
    if kind == "affine":
        turns = _turns() + [np.abs(turn) for turn in _turns()]
        scales = [np.diag(axis) for axis in along]
        return AffineGroup(_about(atlas_centre, [*turns, *scales], size), np.empty((0, 4, 4)))
    scales = {"rigid": [], "similarity": [np.eye(3)], "scales": [np.diag(axis) for axis in along]}[kind]
    return AffineGroup(_about(atlas_centre, scales, None), _about(target_centre, _turns(), size))


def _turns() -> list[NDArray[np.float64]]:
    turns = []
    for i, j in itertools.combinations(range(3), 2):
        turn = np.zeros((3, 3))
        turn[i, j], turn[j, i] = 1, -1
        turns.append(turn)
    return turns


def _about(centre: NDArray[np.float64], linear: list[NDArray[np.float64]], size: float | None) -> NDArray[np.float64]:
    """Return linear maps about a point as 4 x 4 matrices, and shifts by ``size`` if there is one."""
    result = np.zeros((len(linear) + (0 if size is None else 3), 4, 4))
    for matrix, generator in zip(linear, result, strict=False):
        generator[:3, :3] = matrix
        generator[:3, 3] = -matrix @ centre
    if size is not None:
        result[len(linear) :, :3, 3] = size * np.eye(3)
    return result
