"""Registration of a volume to an atlas: reading, fitting, and judging the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas
from cloudreg.atlas.atlas import slabs
from cloudreg.atlas.ids import distinct
from cloudreg.errors import InputError, RegistrationFailedError
from cloudreg.execution import Engine
from cloudreg.execution.progress import say, track
from cloudreg.illumination import BiasField
from cloudreg.io import Volume, read_resampled
from cloudreg.registration.backend import backend_for
from cloudreg.registration.checkpoint import Checkpoint, digest
from cloudreg.registration.descent import Scales
from cloudreg.registration.even import even_out
from cloudreg.registration.fit import Solution, choose_scales, most_steps, solve
from cloudreg.registration.flow import invert, jacobian_determinant
from cloudreg.registration.levels import Image
from cloudreg.registration.pose import CLEAR, MOST_ANISOTROPY, MOST_VOLUME, TIE, Pose, implausible, nearest_rotation
from cloudreg.registration.prepare import completed, labelled_part, prepare
from cloudreg.registration.recolour import tells_little
from cloudreg.registration.solver import Explanation
from cloudreg.registration.within import brain_within, enclosed, near_the_brain, shows_more
from cloudreg.run_folder import library_versions
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid, axes_between, proper_orientations
from cloudreg.transforms import DisplacementField, Frame, Transform, affine_between_middles
from cloudreg.transforms.initial import overlap
from cloudreg.transforms.transform import inverse_consistency_um

_PREVIEW = 96
"""Voxels along the atlas's longest side when its size is first measured."""


_MOST_EXTENT, _MOST_SIZE = 12.0, 3.0
"""By how much the volumes, and what is in them, may differ in width: half a brain, or one in a head, by less than 2."""

_LEAST_OVERLAP = 0.1
"""Part of the smaller volume that lies in the other one where a fit may start."""


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
    initial_affine = _start(target, atlas, settings, initial_affine)
    _require_comparable(target.grid, atlas.template.grid)
    template, grid = read_resampled(atlas.template, max(atlas.template.grid.size_um) / _PREVIEW, engine=engine)
    preview = _prepared(template, np.ones_like(template), grid, "template", settings)
    scales = choose_scales(preview, target.grid, atlas.template.grid, settings)
    finest = scales.levels[-1]
    templates = []
    for number in range(atlas.template.channels):
        template, grid = read_resampled(atlas.template, finest, channel=number, engine=engine)
        templates.append(_prepared(template, np.ones_like(template), grid, "template", settings))
    targets, biases = [], {}
    for number in channels:
        values, grid, observed = read_resampled(target, finest, channel=number, engine=engine, weight=True)
        user = None if mask is None else _on_grid(mask, grid, engine)
        even = even_out(values, observed, grid, settings, unit_um=scales.unit, mask=user)
        if even.bias is not None:
            biases[number] = even.bias
        targets.append(_prepared(even.values, observed, grid, "target", settings, user))

    if initial_affine is None and settings.scale is None:
        _require_like_size(targets[0], templates[0])

    rotations = _rotations(target, atlas, settings)
    regions = None if atlas.labels is None else cache(partial(_numbered_regions, atlas, templates[0].grid))

    def solved(
        targets: Sequence[Image],
        templates: Sequence[Image],
        scales: Scales,
        initial: NDArray[np.float64] | None,
        settings: RegistrationSettings = settings,
        rotations: Sequence[tuple[str, NDArray[np.float64]]] = rotations,
    ) -> Solution:
        pairs = [(seen, template) for seen in targets for template in templates]
        checkpoint = None
        if work is not None:
            values = settings.model_dump(mode="json"), scales, rotations, initial, regions is None, library_versions()
            checkpoint = Checkpoint(work, digest([*targets, *templates], *values))
        steps = most_steps(settings, len(scales.levels))
        with track("registering", steps, "steps") if steps else nullcontext(_silent) as advance:
            return solve(
                *pairs[0],
                rotations,
                settings,
                scales=scales,
                more=pairs[1:],
                regions=regions,
                initial=None if initial is None else np.asarray(np.linalg.inv(initial), dtype=np.float64),
                backend=backend,
                checkpoint=checkpoint,
                report=say,
                advance=advance,
            )

    solution, used = solved(targets, templates, scales, initial_affine), templates
    known = initial_affine is not None or settings.scale is not None
    if implausible(solution.fit.to_atlas) and not known and atlas.labels is not None:
        brains = [labelled_part(template, atlas.labels, engine) for template in templates]
        found = [brain for brain in brains if brain is not None]
        if len(found) == len(templates):
            say("the scales are no brain's, and the template shows more than its regions: once more with these alone")
            brain_scales = choose_scales(found[0], target.grid, atlas.template.grid, settings)
            rough = solved(targets, found, brain_scales, None, settings.model_copy(update={"deform": False}))
            whole = [
                completed(brain, template, targets[0], rough.fit.to_atlas, brain_scales.unit)
                for brain, template in zip(found, templates, strict=True)
            ]
            second = solved(targets, whole, brain_scales, None)
            if not implausible(second.fit.to_atlas):
                solution, scales, used = second, brain_scales, whole
    try:
        registration = _finish(solution, scales, biases)
    except RegistrationFailedError:
        if known or not shows_more(targets[0], templates[0]):
            raise
        say(
            "that failed, and the target shows more than a brain: once more with what lies near the atlas's brain alone"
        )
        turns = (
            [turn for _, turn in rotations] if len(rotations) == 1 else [nearest_rotation(p) for p in solution.poses]
        )
        to_atlas = brain_within(targets[0], templates[0], turns, scales.unit)
        if not enclosed(targets[0], templates[0], to_atlas, scales.unit):
            raise
        near = [near_the_brain(seen, templates[0], to_atlas, scales.unit) for seen in targets]
        second = solved(near, templates, scales, _inverse_affine(to_atlas))
        if implausible(second.fit.to_atlas):
            raise
        registration = _finish(second, scales, biases, within=True)
    lettered = len(rotations) == 1 and not (known or settings.allow_mirror or registration.figures["within"])
    if lettered and solution.share is not None and tells_little(solution.share):
        say("the template's greys tell little of the target: is it turned as its letters say?")
        every = [(name, axes_between(name, atlas.orientation)) for name in proper_orientations(atlas.orientation)]
        turned = solved(targets, used, scales, None, settings.model_copy(update={"deform": False}), every)
        better = _better_turned(rotations[0][0], turned.poses)
        if better is not None:
            registration.figures["doubts"].insert(
                0, f"turned as {better} it looks more like the atlas than as {rotations[0][0]}: check the letters"
            )
    for doubt in registration.figures["doubts"]:
        say(f"doubt: {doubt}")
    return registration


def _better_turned(letters: str, poses: Sequence[Pose]) -> str | None:
    """Return the letters of a pose that clearly explains the target better than those that were given."""
    given = [pose.objective for pose in poses if pose.name.startswith(letters)]
    best = poses[0]
    clear = not given or min(given) - best.objective > CLEAR
    # Poses between the 24 say so behind their letters.
    return best.name.split()[0] if clear else None


def _silent(steps: int) -> None:
    """Say nothing of steps."""


def _prepared(
    values: NDArray[np.float32],
    observed: NDArray[np.float32],
    grid: Grid,
    name: str,
    settings: RegistrationSettings,
    mask: NDArray[np.float32] | None = None,
) -> Image:
    missing = settings.missing_data and name == "target"
    return prepare(values, observed, grid, name=name, missing_data=missing, mask=mask)


def _start(
    target: Volume, atlas: Atlas, settings: RegistrationSettings, initial_affine: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return the affine to start from where one is given, in whichever way."""
    if initial_affine is not None:
        if settings.moved or settings.scale is not None:
            raise InputError(
                "expected one place to start from, got an initial affine and a rotation, translation or scale: "
                "the affine holds all of these"
            )
        return initial_affine
    if not settings.moved:
        return None
    start = affine_between_middles(
        Frame(atlas.template.grid, atlas.orientation),
        Frame(target.grid, target.orientation),
        rotation_deg=settings.rotation_deg or (0.0, 0.0, 0.0),
        translation_um=settings.translation_um or (0.0, 0.0, 0.0),
        scale=settings.scale or (1.0,),
        allow_mirror=settings.allow_mirror,
    )
    common = overlap(start, atlas.template.grid, target.grid)
    if common < _LEAST_OVERLAP:
        raise InputError(
            f"expected a start that brings the atlas to the target, got one that leaves {common:.0%} in common: the "
            "translation is in micrometres, along the target's axes z y x"
        )
    return start


def _require_comparable(target: Grid, template: Grid) -> None:
    """Refuse what is no volume, and voxel sizes in other units, before anything is read."""
    for name, grid in (("target", target), ("template", template)):
        thin = [axis for axis, n in zip("zyx", grid.shape, strict=True) if n < 2]
        if thin:
            raise InputError(
                f"expected volumes, got a {name} that is one voxel thick along {' and '.join(thin)}: a single section "
                "can't be registered"
            )
    sizes = [float(np.prod(grid.size_um)) ** (1 / 3) / 1000 for grid in (target, template)]
    if not 1 / _MOST_EXTENT < sizes[0] / sizes[1] < _MOST_EXTENT:
        raise InputError(
            f"the target's volume is {sizes[0]:.3g} mm wide and the template's {sizes[1]:.3g} mm: check both voxel "
            "sizes, which are in micrometres"
        )


def _require_like_size(target: Image, template: Image) -> None:
    """Refuse brains of which one is several times as large as the other."""
    volumes = [float(i.foreground.sum()) * i.grid.voxel_volume_um3 for i in (target, template)]
    if min(volumes) == 0:
        return
    ratio = (volumes[0] / volumes[1]) ** (1 / 3)
    if not 1 / _MOST_SIZE < ratio < _MOST_SIZE:
        raise InputError(
            f"the target's tissue is {ratio:.2g} times as wide as the atlas's: check both voxel sizes (micrometres), "
            "or give --scale if that is so"
        )


def _rotations(target: Volume, atlas: Atlas, settings: RegistrationSettings) -> list[tuple[str, NDArray[np.float64]]]:
    """Return the rotations from target axes to atlas axes to start from."""
    mirror = settings.allow_mirror
    if target.orientation is not None:
        letters = [target.orientation]
    else:
        letters = proper_orientations(atlas.orientation)
    return [(name, axes_between(name, atlas.orientation, allow_mirror=mirror)) for name in letters]


def _numbered_regions(atlas: Atlas, grid: Grid) -> NDArray[np.int32]:
    """Return which region each voxel of a grid is in, numbered from 1 in the order of their ids, and 0 in none."""
    ids = np.empty(grid.shape, dtype=np.uint64)
    for box in slabs(grid):
        index = np.stack(np.unravel_index(np.arange(box.size), box.shape), axis=1) + box.start
        ids[box.slices] = atlas.labels_at(grid.index_to_um(index)).reshape(box.shape)
    known = distinct(ids)
    known = known[known > 0]
    return np.where(ids > 0, np.searchsorted(known, ids) + 1, 0).astype(np.int32)


def _on_grid(mask: Volume, grid: Grid, engine: Engine) -> NDArray[np.float32]:
    """Sample a mask at the target's voxels."""
    from scipy.ndimage import affine_transform

    values, own = read_resampled(mask, max(grid.voxel_size_um), engine=engine)
    if values.max() > 1:
        values = (values > 0).astype(np.float32)
    step = np.linalg.inv(own.affine) @ grid.affine
    sampled = affine_transform(values, step[:3, :3], step[:3, 3], grid.shape, order=1, mode="constant")
    return np.asarray(np.clip(sampled, 0, 1), dtype=np.float32)


def _finish(solution: Solution, scales: Scales, biases: dict[int, BiasField], *, within: bool = False) -> Registration:
    """Turn the solver's unknowns into a transform both ways, and measure it.

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
    figures = _figures(solution, transform, explanation)
    figures["within"] = within
    figures["greys_told"] = solution.share
    figures["recoloured"] = solution.recoloured[0]
    _refuse_failure(figures)
    figures["doubts"] = _doubts(figures)
    return Registration(
        transform,
        [asdict(energy) for energy in solution.energies],
        level.target.grid,
        explanation,
        level.target,
        figures,
        scales,
        biases,
    )


def _inverse_affine(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse with a last row of exactly 0 0 0 1, which the products of the fit have only nearly."""
    inverse = np.eye(4)
    inverse[:3, :3] = np.linalg.inv(matrix[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ matrix[:3, 3]
    return inverse


def _figures(solution: Solution, transform: Transform, explanation: Explanation) -> dict[str, Any]:
    fit, level = solution.fit, solution.problem.level
    tissue = (explanation.atlas > 0.15) & (level.target.weight > 0)
    grey, predicted = level.target.values[tissue].astype(float), explanation.predicted[tissue].astype(float)
    if grey.size < 100:
        raise InputError("the atlas's brain and the target do not overlap: check the orientation and the voxel size")
    determinant = jacobian_determinant(fit.flow.displacement, fit.flow.spacing)
    scale = np.linalg.svd(transform.affine[:3, :3], compute_uv=False)
    index = np.argwhere(explanation.atlas > 0.15)
    sample = level.target.grid.index_to_um(index[:: max(1, len(index) // 20000)])
    inside_atlas, _ = transform.target_to_atlas(sample)
    consistency = inverse_consistency_um(transform, inside_atlas)
    poses = solution.poses
    matched = float(explanation.match[tissue].mean())
    observed = float((level.target.weight > 0)[explanation.atlas > 0.15].mean())
    return {
        "resolution_um": level.voxel_um,
        "explained_variance": 1 - float(np.var(grey - predicted) / max(np.var(grey), 1e-12)),
        "correlation": float(np.corrcoef(grey, predicted)[0, 1]),
        "matched_fraction": matched,
        "observed_fraction": observed,
        "score": matched * observed,
        "noise": fit.mixture.sigma_match,
        "affine_scales": [float(s) for s in scale],
        "displacement_median_um": float(np.median(np.linalg.norm(fit.flow.displacement, axis=-1))),
        "displacement_max_um": float(np.linalg.norm(fit.flow.displacement, axis=-1).max()),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
        "inverse_consistency_median_um": float(np.median(consistency)),
        "inverse_consistency_p99_um": float(np.quantile(consistency, 0.99)),
        "cuts": [cut.describe() for cut in solution.cuts],
        "pose": poses[0].name,
        "pose_objective": poses[0].objective,
        "pose_margin": poses[1].objective - poses[0].objective if len(poses) > 1 else None,
    }


def _refuse_failure(figures: dict[str, Any]) -> None:
    """Raise where the fit is no registration at all; finer judgements are the report's."""
    low, high = min(figures["affine_scales"]), max(figures["affine_scales"])
    advice = "check the orientation letters, the voxel size and the channel"
    # Clearing swells and shrinks a brain by some tens of per cent, and not one way half as much again as another: half
    # a brain taken for a whole one is squeezed like that.
    if low < 0.3 or high > 3 or high > 1.5 * low:
        raise RegistrationFailedError(
            f"the registration failed: it scales the brain by {low:.2f} one way and {high:.2f} another; {advice}"
        )
    if figures["matched_fraction"] < 0.2 or figures["correlation"] < 0.1:
        raise RegistrationFailedError(
            f"the registration failed: only {figures['matched_fraction']:.0%} of the brain matches the atlas and the "
            f"predicted image correlates {figures['correlation']:.2f} with the target; {advice}"
        )
    if figures["jacobian_min"] <= 0:
        raise RegistrationFailedError("the registration failed: the map folds; raise the regularization")


def _doubts(figures: dict[str, Any]) -> list[str]:
    """Return what speaks against a fit that isn't refused, a sentence each."""
    low, high = min(figures["affine_scales"]), max(figures["affine_scales"])
    volume = float(np.prod(figures["affine_scales"]))
    doubts = []
    if not 1 / MOST_VOLUME < volume < MOST_VOLUME:
        doubts.append(f"the atlas had to be scaled to {volume:.2f} of its volume: check the voxel size")
    if high > MOST_ANISOTROPY * low:
        doubts.append(f"the atlas was scaled by {low:.2f} one way and {high:.2f} another: check the voxel size")
    if figures["cuts"]:
        where = " and ".join(figures["cuts"])
        doubts.append(f"the brain was taken to be cut at {where}: regions beyond are a guess from the rest")
    if figures["within"]:
        doubts.append(
            "the target shows more than a brain: where the brain lies in it was found by trying, and only what is near "
            "was used, so look at the result or give a volume of the brain alone"
        )
    if figures["matched_fraction"] < 0.5:
        doubts.append(f"only {figures['matched_fraction']:.0%} of the brain matches the atlas")
    if figures["pose_margin"] is not None and figures["pose_margin"] < TIE:
        doubts.append("another pose explains the brain as well: give --orientation, or compare with it")
    return doubts
