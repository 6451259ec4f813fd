"""Registration of a volume to an atlas: reading, fitting, and judging the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas
from cloudreg.errors import InputError, RegistrationFailedError
from cloudreg.execution import Engine
from cloudreg.execution.progress import say, track
from cloudreg.illumination import BiasField
from cloudreg.io import Volume
from cloudreg.registration.backend import Backend, backend_for
from cloudreg.registration.checkpoint import Checkpoint, digest
from cloudreg.registration.descent import Scales
from cloudreg.registration.fit import Solution, choose_scales, most_steps, solve
from cloudreg.registration.flow import invert
from cloudreg.registration.inputs import (
    Images,
    Rotations,
    given_scales,
    numbered_regions,
    read_images,
    require_like_size,
    rotations_for,
    start_affine,
)
from cloudreg.registration.judgement import doubts_about, figures_of, refuse_failure
from cloudreg.registration.levels import Image
from cloudreg.registration.pose import CLEAR, Pose, implausible, nearest_rotation
from cloudreg.registration.prepare import completed, labelled_part
from cloudreg.registration.recolour import tells_little
from cloudreg.registration.solver import Explanation
from cloudreg.registration.within import brain_within, enclosed, near_the_brain, shows_more
from cloudreg.run_folder import library_versions
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid, axes_between, proper_orientations
from cloudreg.transforms import DisplacementField, Transform


@dataclass(frozen=True)
class Registration:
    """A fitted map and what is known about it.

    Parameters
    ----------
    transform
        Between atlas and target.
    energies
        One row per step: level, iteration, objective and its parts.
    target_grid
        Grid of the maps in ``explanation``, at the finest resolution of the fit.
    explanation
        Prediction and class posteriors per voxel.
    target
        The normalised target at that resolution.
    figures
        Numbers by which to judge the fit.
    scales
        The lengths that were used.
    biases
        The slow illumination that was taken off, by channel, if it was looked for.
    """

    transform: Transform
    energies: list[dict[str, Any]]
    target_grid: Grid
    explanation: Explanation
    target: Image
    figures: dict[str, Any]
    scales: Scales
    biases: dict[int, BiasField]


def register_volume(
    target: Volume,
    atlas: Atlas,
    settings: RegistrationSettings,
    *,
    engine: Engine,
    channel: int | Sequence[int] = 0,
    mask: Volume | None = None,
    initial_affine: NDArray[np.float64] | None = None,
    work: Path | None = None,
) -> Registration:
    """Register a volume to an atlas.

    Parameters
    ----------
    target
        Any volume. Where it carries no orientation letters, all 24 poses are tried and the best is taken.
    atlas
        Its template is deformed to explain the target.
    settings
        See `cloudreg.settings.RegistrationSettings`.
    engine
        For reading large volumes.
    channel
        Of the target. Several are fitted together, each with a contrast and a noise of its own: the first finds the
        pose, and is what the figures are about. Of a template of several channels each explains each of these.
    mask
        Data weights (0 to 1, or any integers of which non-zero counts) on any grid in the target's space.
    initial_affine
        4 x 4, atlas um to target um (z y x): where to start, instead of the letters and of what the settings say.
    work
        Folder in which to keep how far the fit has come. What a killed registration of the same images by the same
        settings kept there is gone on from, to the same bytes.

    Raises
    ------
    InputError
        If the images can't be registered as they are (NaN, constant, without tissue, mirrored letters), there's no
        such device, or two different starts are given.
    RegistrationFailedError
        If the fit explains so little of the target that it must not be used.
    """
    # First of all: a device that isn't there is said before anything is read.
    backend = backend_for(settings.device, say)
    channels = (channel,) if isinstance(channel, int) else tuple(channel)
    if not channels:
        raise InputError("which channel is to be registered? got none")
    start = start_affine(target, atlas, settings, initial_affine)
    rotations = rotations_for(target, atlas, settings)
    read = partial(read_images, target, atlas, settings, engine=engine, channels=channels, mask=mask)
    images = read()
    known = start is not None or settings.scale is not None
    scales = given_scales(start, settings)
    if not known:
        require_like_size(images.targets[0], images.templates[0])
    grid = images.templates[0].grid
    regions = None if atlas.labels is None else cache(partial(numbered_regions, atlas, grid))
    fitter = _Fitter(settings, backend, rotations, regions, work)

    solution = fitter.fit(images, start=start)
    if implausible(solution.fit.to_atlas) and not known:
        of_brain = _with_the_brain_alone(fitter, images, read, target.grid, atlas, engine)
        if of_brain is not None:
            solution, images = of_brain
    try:
        registration = _finish(solution, images, scales)
    except RegistrationFailedError:
        in_head = None if known else _in_a_head(fitter, images, solution)
        if in_head is None:
            raise
        registration = _finish(in_head, images, scales, within=True)
    if not (known or settings.allow_mirror or registration.figures["within"]):
        better = _better_letters(fitter, images, solution, atlas)
        if better is not None:
            letters = fitter.rotations[0][0]
            doubt = f"turned as {better} it looks more like the atlas than as {letters}: check the letters"
            registration.figures["doubts"].insert(0, doubt)
    for doubt in registration.figures["doubts"]:
        say(f"doubt: {doubt}")
    return registration


@dataclass(frozen=True)
class _Fitter:
    """What all fits of one registration share.

    Parameters
    ----------
    settings, backend
        How, and where, the solver computes.
    rotations
        From target axes to atlas axes, of which one or all are tried.
    regions
        See `cloudreg.registration.fit.solve`.
    work
        Folder of the checkpoint, if one is kept.
    """

    settings: RegistrationSettings
    backend: Backend
    rotations: Rotations
    regions: Callable[[], NDArray[np.integer]] | None
    work: Path | None

    def fit(
        self,
        images: Images,
        *,
        start: NDArray[np.float64] | None = None,
        deform: bool = True,
        rotations: Rotations | None = None,
    ) -> Solution:
        """Fit from an affine, atlas um to target um, or from the rotations; the affine only, if nothing may deform."""
        settings = self.settings if deform else self.settings.model_copy(update={"deform": False})
        rotations = self.rotations if rotations is None else rotations
        pairs = images.pairs
        checkpoint = None
        if self.work is not None:
            values = settings.model_dump(mode="json"), images.scales, rotations, start, self.regions is None
            checkpoint = Checkpoint(
                self.work, digest([*images.targets, *images.templates], *values, library_versions())
            )
        steps = most_steps(settings, len(images.scales.levels))
        with track("registering", steps, "steps") if steps else nullcontext(_silent) as advance:
            return solve(
                *pairs[0],
                rotations,
                settings,
                scales=images.scales,
                more=pairs[1:],
                regions=self.regions,
                initial=None if start is None else np.asarray(np.linalg.inv(start), dtype=np.float64),
                backend=self.backend,
                checkpoint=checkpoint,
                report=say,
                advance=advance,
            )


def _silent(steps: int) -> None:
    """Say nothing of steps."""


def _with_the_brain_alone(
    fitter: _Fitter, images: Images, read: Callable[..., Images], target: Grid, atlas: Atlas, engine: Engine
) -> tuple[Solution, Images] | None:
    """Fit once more without what the template shows beside its brain; None where it shows nothing or that is no use.

    ``read`` reads the images again, by keyword for other ``scales``: a brain is smaller than its head, and the voxels
    that suit it are finer.
    """
    found = _brains(images, atlas, engine)
    if found is None:
        return None
    say("the scales are no brain's, and the template shows more than its regions: once more with these alone")
    scales = choose_scales(found[0], target, atlas.template.grid, fitter.settings)
    if scales.levels[-1] < images.scales.levels[-1]:
        images = read(scales=scales)
        found = _brains(images, atlas, engine)
        if found is None:
            return None
    rough = fitter.fit(replace(images, templates=found, scales=scales), deform=False)
    whole = tuple(
        completed(brain, template, images.targets[0], rough.fit.to_atlas, scales.unit)
        for brain, template in zip(found, images.templates, strict=True)
    )
    images = replace(images, templates=whole, scales=scales)
    solution = fitter.fit(images)
    return None if implausible(solution.fit.to_atlas) else (solution, images)


def _brains(images: Images, atlas: Atlas, engine: Engine) -> tuple[Image, ...] | None:
    """Return the labelled part of each template; None where one of them has no more than that."""
    if atlas.labels is None:
        return None
    brains = [labelled_part(template, atlas.labels, engine) for template in images.templates]
    found = tuple(brain for brain in brains if brain is not None)
    return found if len(found) == len(brains) else None


def _in_a_head(fitter: _Fitter, images: Images, failed: Solution) -> Solution | None:
    """Fit once more with what lies near the atlas's brain in a target that shows a head; None where it is none."""
    target, template, unit = images.targets[0], images.templates[0], images.scales.unit
    if not shows_more(target, template):
        return None
    say("that failed, and the target shows more than a brain: once more with what lies near the atlas's brain alone")
    given = [turn for _, turn in fitter.rotations]
    turns = given if len(given) == 1 else [nearest_rotation(pose) for pose in failed.poses]
    to_atlas = brain_within(target, template, turns, unit)
    if not enclosed(target, template, to_atlas, unit):
        return None
    near = tuple(near_the_brain(seen, template, to_atlas, unit) for seen in images.targets)
    solution = fitter.fit(replace(images, targets=near), start=_inverse_affine(to_atlas))
    return None if implausible(solution.fit.to_atlas) else solution


def _better_letters(fitter: _Fitter, images: Images, solution: Solution, atlas: Atlas) -> str | None:
    """Return the letters of a pose that clearly explains the target better than those that were given, if there is one.

    It is looked for only where the template's greys tell so little that a brain that lies wrong is not seen otherwise.
    """
    if len(fitter.rotations) > 1 or solution.share is None or not tells_little(solution.share):
        return None
    say("the template's greys tell little of the target: is it turned as its letters say?")
    every = [(name, axes_between(name, atlas.orientation)) for name in proper_orientations(atlas.orientation)]
    poses = fitter.fit(images, deform=False, rotations=every).poses
    return _better_turned(fitter.rotations[0][0], poses)


def _better_turned(letters: str, poses: Sequence[Pose]) -> str | None:
    """Return the best pose's letters where it is clearly better than that of the letters given."""
    given = [pose.objective for pose in poses if pose.name.startswith(letters)]
    best = poses[0]
    clear = not given or min(given) - best.objective > CLEAR
    # Poses between the 24 say so behind their letters.
    return best.name.split()[0] if clear else None


def _finish(solution: Solution, images: Images, given: NDArray[np.float64], *, within: bool = False) -> Registration:
    """Turn the solver's unknowns into a transform both ways, and measure it.

    ``given`` is what was known of the atlas's scales (`cloudreg.registration.inputs.given_scales`).
    ``within`` says that the target shows more than a brain, of which only the surroundings of the atlas's were used.
    """
    solution = replace(solution, problem=solution.problem.fetched())
    fit, grid = solution.fit, solution.velocity_grid
    inverse = fit.flow.displacement
    spacing = fit.flow.spacing
    fine = invert(inverse, spacing)
    half = [v / 2 for v in grid.voxel_size_um]
    fine_grid = Grid.from_spacing(fine.shape[:3], half, grid.origin_um.tolist())
    transform = Transform(
        _inverse_affine(fit.to_atlas),
        DisplacementField(fine_grid, np.ascontiguousarray(np.moveaxis(fine, 3, 0))),
        DisplacementField(grid, np.ascontiguousarray(np.moveaxis(inverse, 3, 0))),
    )
    level = solution.problem.level
    explanation = solution.problem.explain(fit)
    figures = figures_of(solution, transform, explanation, images.templates[0], given)
    figures["within"] = within
    figures["greys_told"] = solution.share
    figures["recoloured"] = solution.recoloured[0]
    figures["prior_softened"] = solution.softness
    figures["kernel_um"] = solution.problem.smoothness.length
    refuse_failure(figures)
    figures["doubts"] = doubts_about(figures)
    return Registration(
        transform,
        [asdict(energy) for energy in solution.energies],
        level.target.grid,
        explanation,
        level.target,
        figures,
        images.scales,
        images.biases,
    )


def _inverse_affine(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse with a last row of exactly 0 0 0 1, which the products of the fit have only nearly."""
    inverse = np.eye(4)
    inverse[:3, :3] = np.linalg.inv(matrix[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ matrix[:3, 3]
    return inverse
