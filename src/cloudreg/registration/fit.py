"""From two images to a fitted map: scales, pose, then levels from coarse to fine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.registration.affine import affine_group
from cloudreg.registration.backend import MAIN_MEMORY, Backend
from cloudreg.registration.checkpoint import Checkpoint, Progress, digest_of
from cloudreg.registration.cuts import Cut, flat_faces
from cloudreg.registration.descent import Descent, Scales, at_level, estimated_at_first, first_intensity
from cloudreg.registration.flow import integrate
from cloudreg.registration.levels import Image, make_level
from cloudreg.registration.pose import GIVEN, Pose, centred_pose, centroid, describe, find_start
from cloudreg.registration.smoothness import Motion
from cloudreg.registration.solver import Energy, Fit, Problem, fit_affine
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

_UNITS_PER_BRAIN = 78
"""The solver's unit of length is this fraction of the brain's size: 100 um for a mouse (cube root of 470 mm3)."""

_MOST_NODES = 5e7
"""Of a velocity grid: a field on it is half a gigabyte, and a fit keeps dozens."""

_COARSEST = 6
"""Units that a voxel of the first level stays below."""


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
    recoloured
        For each pair of channels, whether its template was given the target's greys
        (`cloudreg.registration.recolour`).
    share
        How much of the target's greys the first pair's template told before (`cloudreg.registration.recolour.told`);
        None where nothing was deformed.
    softness
        By which the prior was divided in the end (`cloudreg.registration.stiffness`).
    """

    fit: Fit
    velocity_grid: Grid
    problem: Problem
    energies: list[Energy]
    poses: list[Pose]
    cuts: list[Cut]
    recoloured: tuple[bool, ...]
    share: float | None
    softness: float


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
        settings.kernel_um or 6 * unit,
        settings.velocity_spacing_um or 3.5 * unit,
        settings.contrast_spacing_um or 4 * unit,
    )


def velocity_grid_for(atlas: Image, scales: Scales) -> Grid:
    """Return an axis-aligned grid over the atlas that reaches at least two kernel lengths beyond the brain.

    Raises
    ------
    InputError
        If it has more nodes than any memory holds.
    """
    from scipy.fft import next_fast_len

    low, high = atlas.grid.bounds_um()
    ends = [np.flatnonzero(atlas.slices_with_tissue(axis))[[0, -1]] for axis in range(3)]
    brain = atlas.grid.index_to_um(list(itertools.product(*ends)))
    low = np.minimum(low, brain.min(axis=0) - 2 * scales.kernel)
    high = np.maximum(high, brain.max(axis=0) + 2 * scales.kernel)
    spacing = scales.velocity_spacing
    # Even: the coarse levels use every other node.
    shape = [2 * next_fast_len(int(n), real=True) for n in np.ceil(((high - low) / spacing + 1) / 2)]
    if np.prod(np.asarray(shape, dtype=float)) > _MOST_NODES:
        raise InputError(
            f"expected a velocity grid of at most {_MOST_NODES:.0e} nodes, got {' x '.join(map(str, shape))}: choose "
            f"registration.kernel_um below {scales.kernel:.4g} or velocity_spacing_um above {spacing:.4g}"
        )
    origin = (low + high) / 2 - (np.asarray(shape) - 1) / 2 * spacing
    return Grid.from_spacing(shape, (spacing,) * 3, origin.tolist())


def solve(
    target: Image,
    atlas: Image,
    rotations: Sequence[tuple[str, NDArray[np.float64]]],
    settings: RegistrationSettings,
    *,
    scales: Scales,
    initial: NDArray[np.float64] | None = None,
    more: Sequence[tuple[Image, Image]] = (),
    regions: Callable[[], NDArray[np.integer]] | None = None,
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
    regions
        Returns (z, y, x) on the atlas's grid: which region a voxel is in, numbered from 1, and 0 in none. Asked for
        only where the atlas's greys tell little of the target, see `cloudreg.registration.recolour`.
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
    home = backend.home(sum(image.values.nbytes + image.weight.nbytes for pair in channels for image in pair))
    sent = {id(image): image.on(home) for pair in channels for image in pair}
    channels = [(sent[id(seen)], sent[id(template)]) for seen, template in channels]
    target, atlas = channels[0]
    known = None if checkpoint is None else checkpoint.load()
    if known is not None and known.regions not in ("", _stands_for(regions, known.recoloured)):
        known = None
    descent = Descent(
        channels,
        velocity_grid_for(atlas, scales),
        scales,
        settings,
        regions=regions,
        home=home,
        coloured=None if known is None else known.recoloured,
        share=None if known is None else known.share,
    )
    levels, problem, spacing = descent.levels, descent.problem, descent.smoothness.spacing
    group = affine_group(settings.affine, centroid(atlas), centroid(target), scales.unit * _UNITS_PER_BRAIN)
    if known is None:
        times = (settings.time_steps,) if settings.velocity == "time-dependent" else ()
        still = backend.send(np.zeros((*times, *descent.grid.shape, 3), dtype=np.float32))
        first = first_intensity(levels[0].target, atlas.reduced(scales.levels[-1]), settings)
        start = Fit(np.eye(4), Motion(still, still), integrate(still, spacing), (first,))
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
        flow = integrate(motion.velocity, spacing)
        intensities = tuple(replace(i, estimated=estimated_at_first(settings)) for i in known.intensities)
        fit, energies = Fit(known.to_atlas, motion, flow, intensities), known.energies
        poses, cuts = known.poses, known.cuts
        report(f"going on where the fit was stopped, after {known.levels} of {len(levels)} levels")
    done = 0 if known is None else known.levels
    if cuts:
        descent.without([cut.beyond(target.grid) for cut in cuts])
    if known is None and len(levels) > 1:
        second = descent.levels[1].near_the_brain(fit.to_atlas, 4 * scales.unit)
        fit, steps = fit_affine(problem(second, 1.0), fit, group, iterations=10)
        energies += steps

    def keep(finished: int) -> None:
        if checkpoint is not None:
            here = fit.fetched()
            unknowns = here.to_atlas, here.motion, here.intensities
            told = descent.coloured, descent.share, _stands_for(regions, descent.coloured)
            checkpoint.save(Progress(finished, *unknowns, energies, poses, cuts, *told))

    if known is None:
        keep(0)
    for number in range(len(levels)):
        if number < done:
            advance(descent.most_steps(number))
            continue
        fit, last, steps = descent.descend(fit, number, group, report, advance)
        energies += steps
        if settings.deform and number + 1 < len(levels):
            keep(number + 1)
    return Solution(
        fit.fetched(), descent.grid, last, energies, poses, cuts, descent.coloured, descent.share, descent.softness
    )


def _stands_for(regions: Callable[[], NDArray[np.integer]] | None, coloured: Sequence[bool]) -> str:
    """Return what stands for the regions in a checkpoint: nothing where their greys were not told."""
    return digest_of(regions()) if regions is not None and any(coloured) else ""


def most_steps(settings: RegistrationSettings, levels: int) -> int:
    """Return how many steps of the velocity so many levels take at most."""
    if not settings.deform:
        return 0
    return sum(int(at_level(settings.iterations, number, levels)) for number in range(levels))
