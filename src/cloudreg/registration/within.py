"""Brains in heads: where the atlas's brain lies in a target that shows skull, skin and neck as well.

The whole of such a target is explained best by an atlas that fills the head, so that the model's objective can't tell.
But within a brain and just around it the atlas's grey explains the target's where the brain is, and nowhere else as
well. So the place is sought at which the share of variance that it explains there is largest, among a brain's scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, binary_dilation, map_coordinates
from scipy.spatial.transform import Rotation

from cloudreg.registration.levels import Image

_LEAST_TISSUE = 1.5
"""A target of less than this many times the atlas's tissue is no head."""

_SHELL, _REACH = 4, 6
"""How much of the surroundings is compared, and how much keeps its weight in the fit, in units of the solver."""

_COARSE, _FINE = 8, 4
"""Voxels at which the brain is sought and found, in units."""

_SHIFTS, _SCALES = 0.1 * np.arange(-3, 4), (0.85, 1.0, 1.18)
"""Where it is sought: from middle to middle, in brain sizes, and how large."""

_FOLLOWED = 4
"""How many of the places are followed to the finer voxels."""

_STEPS = np.repeat([0.05, 0.06, 0.09], 3)
"""First steps of the search there: shifts in brain sizes, logarithms of the scales, turns in radians."""

_HALVINGS, _MOST_PASSES = 4, 40
_ENCLOSED = 0.7
"""Share of the lines through the brain that must meet tissue before it. A brain stretched along one axis reaches a
third."""

_FEWEST = 0.6
"""Part of the atlas's brain and its surroundings that must lie in the target's field."""

_DEGREE = 3
"""Of the polynomial from the atlas's grey to the target's."""


@dataclass(frozen=True)
class _Probe:
    """The atlas in its brain and just around it, held against a target at one resolution.

    Parameters
    ----------
    points
        (n, 3): where the atlas's voxels lie, um.
    design
        (n, degree + 1): powers of their grey.
    target
        Image at that resolution.
    """

    points: NDArray[np.float64]
    design: NDArray[np.float64]
    target: Image

    def explained(self, to_target: NDArray[np.float64]) -> float:
        """Return the share of the target's variance that the atlas explains where a 4 x 4 puts it; -1 out of field."""
        index = self.target.grid.um_to_index(self.points @ to_target[:3, :3].T + to_target[:3, 3]).T
        weight = map_coordinates(self.target.weight, index, order=1, mode="constant", output=np.float32)
        seen = weight > 0.5
        if seen.mean() < _FEWEST:
            return -1.0
        grey = map_coordinates(self.target.values, index[:, seen], order=1, mode="nearest", output=np.float64)
        design = self.design[seen]
        moments = design.T @ design
        # Just enough to be solvable where all that is left in the field has one grey.
        moments += 1e-6 * np.trace(moments) * np.eye(len(moments))
        residual = grey - design @ np.linalg.solve(moments, design.T @ grey)
        return 1 - float(residual.var() / max(grey.var(), 1e-9))


def _probe(target: Image, atlas: Image, voxel_um: float, unit_um: float) -> _Probe:
    small = atlas.reduced(voxel_um)
    margin = max(1, round(_SHELL * unit_um / voxel_um))
    # The surroundings may lie beyond the atlas's own field.
    values = np.pad(small.values, margin)
    near = binary_dilation(np.pad(small.foreground, margin), iterations=margin)
    points = small.grid.index_to_um(np.argwhere(near) - margin)
    grey = values[near].astype(np.float64)
    grey = (grey - grey.mean()) / max(float(grey.std()), 1e-6)
    return _Probe(points, np.vander(grey, _DEGREE + 1), target.reduced(voxel_um))


def shows_more(target: Image, atlas: Image) -> bool:
    """Return whether a target has so much more tissue than the atlas that it can't be a brain alone."""
    tissue = [float(i.foreground.sum()) * i.grid.voxel_volume_um3 for i in (target, atlas)]
    return tissue[0] > _LEAST_TISSUE * tissue[1]


def brain_within(
    target: Image, atlas: Image, rotations: Sequence[NDArray[np.float64]], unit_um: float
) -> NDArray[np.float64]:
    """Find the atlas's brain in a target that shows more than a brain.

    Parameters
    ----------
    target, atlas
        Normalised images.
    rotations
        3 x 3, target axes to atlas axes: how the target may lie.
    unit_um
        The solver's unit of length.

    Returns
    -------
    ndarray
        4 x 4, target um to atlas um.
    """
    brain = atlas.grid.index_to_um(np.argwhere(atlas.foreground))
    middle = brain.mean(axis=0)
    size = float(len(brain) * atlas.grid.voxel_volume_um3) ** (1 / 3)
    here = target.grid.index_to_um(np.argwhere(target.foreground)).mean(axis=0)

    def placed(rotation: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return atlas um to target um: turned about the brain's middle, scaled along the atlas's axes, shifted."""
        to_target = np.eye(4)
        to_target[:3, :3] = rotation.T @ Rotation.from_rotvec(by[6:]).as_matrix() @ np.diag(np.exp(by[3:6]))
        to_target[:3, 3] = here + size * by[:3] - to_target[:3, :3] @ middle
        return to_target

    coarse, fine = (_probe(target, atlas, k * unit_um, unit_um) for k in (_COARSE, _FINE))
    tried = []
    for rotation in rotations:
        for scale, *shift in itertools.product(_SCALES, _SHIFTS, _SHIFTS, _SHIFTS):
            by = np.array([*shift, *(np.log(scale),) * 3, 0, 0, 0])
            tried.append((coarse.explained(placed(rotation, by)), rotation, by))
    tried.sort(key=lambda item: -item[0])
    best, found = -np.inf, np.eye(4)
    for _, rotation, by in tried[:_FOLLOWED]:
        reached, there = _climbed(fine, partial(placed, rotation), by)
        if reached > best:
            best, found = reached, there
    return np.asarray(np.linalg.inv(found))


def _climbed(
    probe: _Probe, placed: Callable[[NDArray[np.float64]], NDArray[np.float64]], by: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Go uphill, one parameter after the other, by steps that are halved where none helps; return how far and where."""
    best = probe.explained(placed(by))
    steps = _STEPS
    for _ in range(_HALVINGS):
        for _ in range(_MOST_PASSES):
            before = best
            for k, sign in itertools.product(range(len(by)), (-1, 1)):
                other = by.copy()
                other[k] += sign * steps[k]
                reached = probe.explained(placed(other))
                if reached > best:
                    best, by = reached, other
            if best == before:
                break
        steps = steps / 2
    return best, placed(by)


def enclosed(target: Image, atlas: Image, to_atlas: NDArray[np.float64], unit_um: float) -> bool:
    """Return whether the target has tissue beyond the atlas's brain on most sides, as a head has, and not on a few."""
    small, brain = _brain_on_target(target, atlas, to_atlas, unit_um)
    lines = more = 0
    for axis in range(3):
        for flipped in (False, True):
            ours, all_tissue = (np.moveaxis(a, axis, 0) for a in (brain, small.foreground))
            if flipped:
                ours, all_tissue = ours[::-1], all_tissue[::-1]
            met = ours.any(axis=0)
            # A voxel more or less is no skull.
            beyond = np.argmax(ours, axis=0) - np.argmax(all_tissue, axis=0) > 1
            lines += int(np.count_nonzero(met))
            more += int(np.count_nonzero(met & beyond & all_tissue.any(axis=0)))
    return more > _ENCLOSED * lines


def near_the_brain(target: Image, atlas: Image, to_atlas: NDArray[np.float64], unit_um: float) -> Image:
    """Return the target with no weight farther from the atlas's brain than what the fit may need."""
    small, brain = _brain_on_target(target, atlas, to_atlas, unit_um)
    near = binary_dilation(brain, iterations=_REACH // 2).astype(np.float32)
    back = np.linalg.inv(small.grid.affine) @ target.grid.affine
    kept = affine_transform(near, back[:3, :3], back[:3, 3], target.grid.shape, order=1, mode="nearest")
    return target.without([kept < 0.5])


def _brain_on_target(
    target: Image, atlas: Image, to_atlas: NDArray[np.float64], unit_um: float
) -> tuple[Image, NDArray[np.bool_]]:
    """Return the target with voxels of two units, and where the atlas's brain lies on it."""
    small = target.reduced(2 * unit_um)
    step = np.linalg.inv(atlas.grid.affine) @ to_atlas @ small.grid.affine
    tissue = atlas.foreground.astype(np.float32)
    return small, affine_transform(tissue, step[:3, :3], step[:3, 3], small.grid.shape, order=1, mode="constant") > 0.5
