"""From two images to a fitted map: scales, pose, then levels from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.affine import affine_group
from cloudreg.registration.backend import MAIN_MEMORY, Backend, Field, backend_of
from cloudreg.registration.checkpoint import Checkpoint, Progress
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.cuts import Cut, flat_faces
from cloudreg.registration.flow import integrate
from cloudreg.registration.levels import Image, Level, make_level, thinned
from cloudreg.registration.mixture import Estimated, Mixture
from cloudreg.registration.pose import GIVEN, Pose, centred_pose, centroid, describe, find_start
from cloudreg.registration.smoothness import Motion, Smoothness
from cloudreg.registration.solver import (
    Energy,
    Fit,
    Intensity,
    Problem,
    fit_affine,
    fit_intensities,
    fit_velocity,
)
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

_UNITS_PER_BRAIN = 78
"""The solver's unit of length is this fraction of the brain's size: 100 um for a mouse (cube root of 470 mm3)."""

_COARSEST = 6
"""Units that a voxel of the first level stays below."""

_LATER: frozenset[Estimated] = frozenset(("variances", "priors"))
"""What of the mixture is not estimated at the first level."""

_SETTLING = 5
"""EM updates of a channel that joins, before anything moves."""


@dataclass(frozen=True)
class Scales:
    """Every length of the solver, um.

    Parameters
    ----------
    unit
        A fixed fraction of the brain's size, so that one set of defaults serves a mouse and a human.
    levels
        Voxel sizes, coarse to fine.
    kernel, velocity_spacing, contrast_spacing
        Smoothness of the velocity, and the spacing of the grids that hold the velocity and the contrast.
    """

    unit: float
    levels: tuple[float, ...]
    kernel: float
    velocity_spacing: float
    contrast_spacing: float


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Parameters
    ----------
    fit
        All unknowns at the finest level.
    velocity_grid
        Grid of the velocity, in atlas space.
    problem
        The finest level, where it was computed (`cloudreg.registration.solver.Problem.fetched`).
    energies
        Objective after each step.
    poses
        Starting poses, the winner first.
    cuts
        Faces beyond which the target had no weight.
    """

    fit: Fit
    velocity_grid: Grid
    problem: Problem
    energies: list[Energy]
    poses: list[Pose]
    cuts: list[Cut]


def choose_scales(atlas: Image, target: Grid, template: Grid, settings: RegistrationSettings) -> Scales:
    """Derive all lengths from the size of the atlas's brain and the settings.

    Parameters
    ----------
    atlas
        The template at any resolution that shows its size.
    target, template
        Grids of the images, at their finest.
    settings
        What it sets is taken as it is.
    """
    volume = float(atlas.foreground.sum()) * atlas.grid.voxel_volume_um3
    unit = volume ** (1 / 3) / _UNITS_PER_BRAIN
    finest = settings.resolution_um
    if finest is None:
        # No finer than the images are, and no finer than what the deformation can use.
        sharpest = max(min(template.voxel_size_um), min(target.voxel_size_um))
        finest = max(sharpest, unit) if not 0.75 * unit < sharpest < 1.5 * unit else sharpest
    # A brain of fewer than a dozen voxels a side is no image.
    most = settings.levels or 1 + max(0, int(np.log2(_COARSEST / finest * unit)))
    levels = [finest * 2**k for k in reversed(range(most)) if k == 0 or finest * 2**k < _COARSEST * unit]
    return Scales(
        unit,
        tuple(levels),
        settings.kernel_um or 5 * unit,
        settings.velocity_spacing_um or 3.5 * unit,
        settings.contrast_spacing_um or 4 * unit,
    )


def velocity_grid_for(atlas: Image, scales: Scales) -> Grid:
    """Return an axis-aligned grid over the atlas that reaches at least two kernel lengths beyond the brain."""
    from scipy.fft import next_fast_len

    low, high = atlas.grid.bounds_um()
    ends = [np.flatnonzero(atlas.slices_with_tissue(axis))[[0, -1]] for axis in range(3)]
    brain = atlas.grid.index_to_um(np.stack(ends, axis=1))
    low = np.minimum(low, brain.min(axis=0) - 2 * scales.kernel)
    high = np.maximum(high, brain.max(axis=0) + 2 * scales.kernel)
    spacing = scales.velocity_spacing
    # Even: the coarse levels use every other node.
    shape = [2 * next_fast_len(int(n), real=True) for n in np.ceil(((high - low) / spacing + 1) / 2)]
    origin = (low + high) / 2 - (np.asarray(shape) - 1) / 2 * spacing
    return Grid.from_spacing(shape, (spacing,) * 3, origin.tolist())


def every_other_node(grid: Grid) -> Grid:
    """Return the grid of the nodes with even indices."""
    spacing = [2 * v for v in grid.voxel_size_um]
    return Grid.from_spacing([n // 2 for n in grid.shape], spacing, grid.origin_um.tolist())


def _smoothness(grid: Grid, scales: Scales) -> Smoothness:
    return Smoothness(grid.shape, np.array(grid.voxel_size_um, dtype=np.float32), scales.kernel)


def solve(
    target: Image,
    atlas: Image,
    rotations: Sequence[tuple[str, NDArray[np.float64]]],
    settings: RegistrationSettings,
    *,
    scales: Scales,
    initial: NDArray[np.float64] | None = None,
    more: Sequence[tuple[Image, Image]] = (),
    backend: Backend = MAIN_MEMORY,
    checkpoint: Checkpoint | None = None,
    report: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda n: None,
) -> Solution:
    """Fit the map from target to atlas.

    Parameters
    ----------
    target, atlas
        Normalised images (`cloudreg.registration.levels.Image`).
    rotations
        Names and 3 x 3 rotations from target axes to atlas axes to start from; the best is kept.
    settings
        See `cloudreg.settings.RegistrationSettings`.
    scales
        From `choose_scales`.
    initial
        4 x 4 from target um to atlas um; replaces ``rotations``.
    more
        Further channels: pairs of target and atlas on the grids of the first two. Each has a contrast and a noise of
        its own; they join when the pose is found.
    backend
        Where the solver computes (`cloudreg.registration.backend.backend_for`); the fit comes back to the main memory.
    checkpoint
        Where to go on from, and to keep the pose and the fit of each level but the last when they are found.
    report
        Gets one line about the pose.
    advance
        Gets 1 after each step of the velocity, and what is left of a level's steps when it ends early.

    Raises
    ------
    InputError
        If one of the images has no foreground.
    """
    channels = [(target, atlas), *more]
    # Several channels of the atlas that explain one grey value count it as often.
    repeats = len(channels) / len({id(seen) for seen, _ in channels})
    home = backend.home(sum(image.values.nbytes + image.weight.nbytes for pair in channels for image in pair))
    sent = {id(image): image.on(home) for pair in channels for image in pair}
    channels = [(sent[id(seen)], sent[id(template)]) for seen, template in channels]
    target, atlas = channels[0]
    fine = velocity_grid_for(atlas, scales)
    grid = every_other_node(fine) if len(scales.levels) > 1 else fine
    smoothness = _smoothness(grid, scales)
    times = (settings.time_steps,) if settings.velocity == "time-dependent" else ()
    still = backend.send(np.zeros((*times, *grid.shape, 3), dtype=np.float32))
    levels = [make_level(target, atlas, voxel_um) for voxel_um in scales.levels]
    group = affine_group(settings.affine, centroid(atlas), centroid(target), scales.unit * _UNITS_PER_BRAIN)

    def problem(level: Level, weight: float, further: Sequence[Level] = ()) -> Problem:
        return Problem(level, grid, smoothness, weight * (100 / scales.unit) ** 2, more=further)

    known = None if checkpoint is None else checkpoint.load()
    if known is None:
        first = _first_intensity(levels[0].target, atlas.reduced(scales.levels[-1]), settings)
        start = Fit(np.eye(4), Motion(still, still), integrate(still, smoothness.spacing), (first,))
        if initial is not None:
            candidates = [Pose(GIVEN, initial)]
        else:
            # Rigid maps keep the scale that they start from.
            scale = settings.scale or ((1.0,) if settings.affine == "rigid" else None)
            candidates = [centred_pose(name, target, atlas, rotation, scale) for name, rotation in rotations]
        reach = 0.3 * scales.unit * _UNITS_PER_BRAIN
        # Images as small as these are faster looked at in the main memory.
        rough = [levels[0].fetched(), make_level(target, atlas, 2 * levels[0].voxel_um).fetched()]
        coarse, search = (problem(level.near_the_tissue(reach), 1.0) for level in rough)
        # Where the pose is given, the brain is what the caller knows it to be.
        small, template = (image.reduced(2 * scales.unit).fetched() for image in (target, atlas))
        faces = flat_faces(small) if initial is None and settings.find_cuts else []
        begun = find_start(search, coarse, start, candidates, faces, template, group)
        fit, energies, poses, cuts = begun.fit, begun.energies, begun.poses, begun.cuts
        report(describe(poses))
    else:
        motion = Motion(backend.send(known.motion.momentum), backend.send(known.motion.velocity))
        flow = integrate(motion.velocity, smoothness.spacing)
        intensities = tuple(replace(i, estimated=_at_first(settings)) for i in known.intensities)
        fit, energies = Fit(known.to_atlas, motion, flow, intensities), known.energies
        poses, cuts = known.poses, known.cuts
        report(f"going on where the fit was stopped, after {known.levels} of {len(levels)} levels")
    done = 0 if known is None else known.levels
    if cuts:
        lost = [cut.beyond(target.grid) for cut in cuts]
        channels = [(seen.without(lost), template) for seen, template in channels]
        levels = [make_level(*channels[0], voxel_um) for voxel_um in scales.levels]
    if known is None and len(levels) > 1:
        second = levels[1].near_the_brain(fit.to_atlas, 4 * scales.unit)
        fit, steps = fit_affine(problem(second, 1.0), fit, group, iterations=10)
        energies += steps

    def keep(finished: int) -> None:
        if checkpoint is not None:
            here = fit.fetched()
            checkpoint.save(Progress(finished, here.to_atlas, here.motion, here.intensities, energies, poses, cuts))

    if known is None:
        keep(0)
    for number, whole in enumerate(levels):
        most = int(_at(settings.iterations, number, len(levels)))
        if number < done:
            advance(most)
            continue
        # The finer the level, the less is left to move.
        margin = max(2 * scales.unit, whole.voxel_um)
        level = whole.near_the_brain(fit.to_atlas, margin)
        others = [make_level(*pair, level.voxel_um).near_the_brain(fit.to_atlas, margin) for pair in channels[1:]]
        if number == 0 and others:
            joined = [
                _first_intensity(other.target, pair[1].reduced(scales.levels[-1]), settings)
                for other, pair in zip(others, channels[1:], strict=True)
            ]
            fit = replace(fit, intensities=(*fit.intensities, *joined))
            fit = fit_intensities(problem(level, 1.0, others), fit, iterations=_SETTLING)
        if number + 1 == len(levels) and grid != fine:
            before, grid, smoothness = smoothness, fine, _smoothness(fine, scales)
            motion = smoothness.refined(fit.motion, before)
            fit = replace(fit, motion=motion, flow=integrate(motion.velocity, smoothness.spacing))
        if number > 0:
            # What lies far off its place at the first level would be counted as artifact.
            follows = frozenset(settings.estimate)
            fit = replace(fit, intensities=tuple(replace(i, estimated=follows) for i in fit.intensities))
        last = problem(level, repeats * _at(settings.regularization, number, len(levels)), others)
        if not settings.deform:
            continue
        local = level.voxel_um < 3 * scales.unit
        step = scales.contrast_spacing / np.array(level.target.grid.voxel_size_um)
        if local:
            shape = level.target.grid.shape
            spread = [replace(i, contrast=i.contrast.on_nodes(shape, step)) for i in fit.intensities]
            fit = replace(fit, intensities=tuple(spread))
        spread_over = 4 if level.voxel_um > 1.5 * scales.unit else 2.5
        smoothing = np.full(3, spread_over * scales.unit / scales.contrast_spacing) if local else None
        fit, steps = fit_velocity(
            last,
            fit,
            group,
            iterations=most,
            smoothing=smoothing,
            tolerance=3e-5 if number + 1 == len(levels) else 1e-4,
            advance=advance,
        )
        advance(most - len(steps))
        energies += steps
        if number + 1 < len(levels):
            keep(number + 1)
    return Solution(fit.fetched(), grid, last, energies, poses, cuts)


def _first_intensity(target: Image, atlas: Image, settings: RegistrationSettings) -> Intensity:
    seen = target.fetched()
    bright = float(np.quantile(seen.values[seen.foreground], 0.9))
    contrast = initial_contrast(_inside(atlas), settings.contrast_order, (0.0, bright))
    artifact, background = (0.2, 0.01) if settings.mixture else (1e-9, 1e-9)
    mixture = Mixture(0.3, 0.5, 0.2, 1.0, 0.0, (1 - artifact - background, artifact, background))
    return Intensity(contrast, mixture, _at_first(settings))


def _at_first(settings: RegistrationSettings) -> frozenset[Estimated]:
    return frozenset(settings.estimate) - _LATER


def most_steps(settings: RegistrationSettings, levels: int) -> int:
    """Return how many steps of the velocity so many levels take at most."""
    if not settings.deform:
        return 0
    return sum(int(_at(settings.iterations, number, levels)) for number in range(levels))


def _at(values: Sequence[float], number: int, count: int) -> float:
    """Return the value of level ``number`` of ``count``: lists are aligned at the finest level."""
    return values[max(0, len(values) - count + number)]


def _inside(atlas: Image) -> NDArray[np.float32]:
    """Atlas values in and just around the brain; outside there is only one grey."""
    backend = backend_of(atlas.values)
    inside = _grown(_grown(atlas.values > 0.1))
    return backend.fetch(thinned(atlas.values)[thinned(inside)])


def _grown(mask: Field) -> Field:
    """Return a mask with the neighbours of its voxels."""
    grown = backend_of(mask).xp.asarray(mask, copy=True)
    for axis in range(3):
        before = (slice(None),) * axis
        lower, upper = (*before, slice(None, -1)), (*before, slice(1, None))
        grown[lower] |= mask[upper]
        grown[upper] |= mask[lower]
    return grown
