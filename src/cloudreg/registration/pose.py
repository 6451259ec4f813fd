"""Where to start: how the target lies to the atlas when nobody says, by trying.

The measure is the model's own objective (what is left unexplained after the contrast has been fitted), so it asks
nothing of the modality.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cloudreg.registration.affine import AffineGroup
from cloudreg.registration.cuts import Cut
from cloudreg.registration.levels import Image
from cloudreg.registration.solver import Energy, Fit, Problem, fit_affine, fit_intensities

CLEAR = 0.2
"""A pose that wins by less than this (in log likelihood per voxel) is doubted, and turns in between are tried."""

GIVEN = "given"
"""Name of a pose that the caller gave."""

TIE = 0.05
"""A margin below which two poses explain the target alike."""

_TURN = np.deg2rad(30)
"""Step of the turns in between: the fit finds its way from half of it."""

_FIRST_STEPS, _MORE_STEPS = 3, 6
"""Steps of the affine from each turn, and from those that did best."""

_PROMISING, _FINALISTS = 24, 4
"""How many turns are followed after the first steps, and how many poses to the end."""

_PARTS = (0.5, 0.7, 0.85)
"""How much of the brain may be left on this side of a cut, to start from."""

MOST_VOLUME, MOST_ANISOTROPY = 1.65, 1.25
"""By how much clearing may swell or shrink a brain, and one of its sides more than another, before it's doubted."""

_SHIFTS, _SCALES = 0.15 * np.arange(-2, 3), (0.85, 1.0, 1.18)
"""Where else the brain may lie, in brain sizes along each axis, and how large, should matching the middles and the
volumes fail: a head holds more than the brain, and its middle is another."""

_WORTH, _MISSING = 0.1, 0.1
"""A cut must explain what is left of the target better than a whole brain does, by this much per voxel, and take away
at least this part of the atlas's brain: a flat side that the atlas has too is no cut."""


@dataclass(frozen=True)
class Pose:
    """A starting affine and how well it explains the target.

    Parameters
    ----------
    name
        Orientation letters, or `GIVEN`.
    to_atlas
        4 x 4, target um to atlas um.
    objective
        Data term per voxel after a short fit; lower is better. NaN where there was nothing to compare.
    scaled
        Whether the scale is known: nothing then begins at another one.
    """

    name: str
    to_atlas: NDArray[np.float64]
    objective: float = float("nan")
    scaled: bool = False

    @property
    def given(self) -> bool:
        """Whether it's the caller's, and not to be doubted."""
        return self.name == GIVEN


def centred_pose(
    name: str,
    target: Image,
    atlas: Image,
    rotation: NDArray[np.float64],
    scale: Sequence[float] | None = None,
) -> Pose:
    """Match centres of mass and volumes of the foregrounds.

    Parameters
    ----------
    name
        Of the pose.
    target, atlas
        Normalised images.
    rotation
        3 x 3, target axes to atlas axes.
    scale
        From atlas to target, along the target's axes: instead of matching the volumes.

    Raises
    ------
    InputError
        If one of the images has no foreground.
    """
    if scale is not None:
        known = _matching(name, rotation / np.asarray(scale), centroid(target), centroid(atlas))
        return replace(known, scaled=True)
    volume = [float(i.foreground.sum()) * i.grid.voxel_volume_um3 for i in (atlas, target)]
    centre = [centroid(i) for i in (atlas, target)]
    # A volume that differs by more than that is a partial brain or a poor mask, not swelling.
    growth = float(np.clip((volume[0] / volume[1]) ** (1 / 3), 0.8, 1.25))
    return _matching(name, growth * rotation, centre[1], centre[0])


def centroid(image: Image) -> NDArray[np.float64]:
    """Return the centre of mass of the foreground, um."""
    counts = [image.slices_with_tissue(axis) for axis in range(3)]
    return image.grid.index_to_um([count @ np.arange(count.size) / count.sum() for count in counts])


def _matching(name: str, linear: NDArray[np.float64], here: NDArray[np.float64], there: NDArray[np.float64]) -> Pose:
    """Return the pose that takes the target's point ``here`` to the atlas's ``there``."""
    to_atlas = np.eye(4)
    to_atlas[:3, :3] = linear
    to_atlas[:3, 3] = there - linear @ here
    return Pose(name, to_atlas)


@dataclass(frozen=True)
class Start:
    """Where the deformation begins.

    Parameters
    ----------
    fit
        With the affine of the best pose.
    poses
        Those fitted to the end, the best first.
    energies
        The winner's steps.
    cuts
        Faces beyond which the target says nothing.
    """

    fit: Fit
    poses: list[Pose]
    energies: list[Energy]
    cuts: list[Cut]


def find_start(
    search: Problem,
    coarse: Problem,
    start: Fit,
    candidates: Sequence[Pose],
    faces: Sequence[Cut],
    atlas: Image,
    group: AffineGroup,
) -> Start:
    """Choose the pose, and which of the target's flat faces are cuts.

    Parameters
    ----------
    search, coarse
        Where many poses are tried, and where the best of them are fitted to the end.
    start
        Everything but the affine.
    candidates
        Where to start from, were the brain whole.
    faces
        Flat faces of the target, the flattest first.
    atlas
        Whose part is sought.
    group
        In which the affine moves.

    Notes
    -----
    A cut is believed when, over the voxels on this side of it, the fit that knows of it leaves less unexplained than
    the fit that takes the air beyond it for air, and puts a good part of the brain beyond.
    """
    brain = atlas.grid.index_to_um(np.argwhere(atlas.foreground))
    found = Start(*_best_pose(search, coarse, start, candidates, group, turn=len(candidates) > 1), [])
    known = candidates[0].given or candidates[0].scaled
    if not known and implausible(found.fit.to_atlas):
        size = float(len(brain) * atlas.grid.voxel_volume_um3) ** (1 / 3)
        rotations = candidates if len(candidates) == 1 else found.poses
        others = _elsewhere(search, start, rotations, brain.mean(axis=0), size)
        other = Start(*_best_pose(search, coarse, start, others, group, turn=False), [])
        if other.poses[0].objective < found.poses[0].objective:
            found = other
    remaining = list(faces)
    while remaining:
        trials = []
        for face in remaining:
            cuts = [*found.cuts, face]
            poses = _poses_of_parts(coarse, found, candidates, face, brain, atlas.grid.voxel_volume_um3)
            fine, rough = (_without(problem, cuts) for problem in (coarse, search))
            fit, ranked, energies = _best_pose(rough, fine, start, poses, group, turn=False)
            # Both may choose their greys for the same voxels, so that only what lies where is compared.
            before, after = (fit_intensities(fine, f, iterations=_MORE_STEPS) for f in (found.fit, fit))
            gain = per_voxel(fine, before) - per_voxel(fine, after)
            if gain > _WORTH and np.mean(_this_side(brain, fit, [face])) < 1 - _MISSING:
                trials.append((gain, face, Start(fit, ranked, energies, cuts)))
        if not trials:
            break
        _, face, better = max(trials, key=lambda trial: trial[0])
        found = better
        remaining = [other for other in remaining if other is not face]
    return found


def implausible(affine: NDArray[np.float64]) -> bool:
    """Return whether an affine scales a brain as clearing does not."""
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    volume = float(np.prod(scales))
    return not 1 / MOST_VOLUME < volume < MOST_VOLUME or bool(scales[0] > MOST_ANISOTROPY * scales[-1])


def _elsewhere(
    problem: Problem, start: Fit, rotations: Sequence[Pose], middle: NDArray[np.float64], size: float
) -> list[Pose]:
    """Return the poses that put the atlas's ``middle`` about the target's and explain most as they are."""
    poses = []
    here = centroid(problem.level.target)
    for pose in rotations:
        rotation = nearest_rotation(pose)
        for scale, *shift in itertools.product(_SCALES, _SHIFTS, _SHIFTS, _SHIFTS):
            candidate = _matching(pose.name, scale * rotation, here, middle + size * np.array(shift))
            fit = fit_intensities(problem, replace(start, to_atlas=candidate.to_atlas), iterations=_FIRST_STEPS)
            poses.append(replace(candidate, objective=per_voxel(problem, fit)))
    return sorted(poses, key=lambda pose: pose.objective)[:_PROMISING]


def nearest_rotation(pose: Pose) -> NDArray[np.float64]:
    """Return the rotation, target axes to atlas axes, that is nearest to a pose's affine."""
    u, _, v = np.linalg.svd(pose.to_atlas[:3, :3])
    return np.asarray(u @ v)


def _without(problem: Problem, cuts: Sequence[Cut]) -> Problem:
    lost = np.logical_or.reduce([cut.beyond(problem.level.target.grid) for cut in cuts])
    return problem.without(lost)


def _this_side(brain: NDArray[np.float64], fit: Fit, cuts: Sequence[Cut]) -> NDArray[np.bool_]:
    """Return which of the atlas's points (n, 3) lie on this side of all cuts."""
    back = np.linalg.inv(fit.to_atlas)
    there = brain @ back[:3, :3].T + back[:3, 3]
    return np.asarray(np.all([there @ cut.normal <= cut.offset_um for cut in cuts], axis=0))


def _poses_of_parts(
    problem: Problem,
    found: Start,
    candidates: Sequence[Pose],
    face: Cut,
    brain: NDArray[np.float64],
    volume_um3: float,
) -> list[Pose]:
    """Match the target with the parts of the atlas that a plane like ``face`` may leave, in each orientation.

    ``brain`` holds the atlas's points (n, 3), each of which stands for a volume.
    """
    target = problem.level.target
    tissue = np.count_nonzero(target.foreground) * target.grid.voxel_volume_um3
    middle = centroid(target)
    if found.cuts:
        # What earlier cuts took away is gone; the orientation is known by now.
        brain = brain[_this_side(brain, found.fit, found.cuts)]
        candidates = found.poses[:1]
    poses = []
    for pose in candidates:
        rotation = nearest_rotation(pose)
        along = brain @ (rotation @ face.normal)
        for part in _PARTS:
            left = brain[along <= np.quantile(along, part)]
            scale = float(np.clip((len(left) * volume_um3 / tissue) ** (1 / 3), 0.7, 1.4))
            linear = pose.to_atlas[:3, :3] if pose.scaled else scale * rotation
            poses.append(replace(_matching(pose.name, linear, middle, left.mean(axis=0)), scaled=pose.scaled))
    return poses


def _best_pose(
    search: Problem,
    coarse: Problem,
    start: Fit,
    candidates: Sequence[Pose],
    group: AffineGroup,
    *,
    turn: bool,
) -> tuple[Fit, list[Pose], list[Energy]]:
    """Fit the affine from each pose: the best fit, the poses from best to worst, and the best one's steps.

    ``turn`` tries turns in between where no candidate is clearly the best.
    """
    poses = list(candidates)
    if len(poses) > 1:
        poses = _tried(search, start, poses, group, _MORE_STEPS)
    if turn and poses[1].objective - poses[0].objective < CLEAR:
        between = [_turned(pose, vector, search) for pose in candidates for vector in _turns()]
        promising = _tried(search, start, between, group, _FIRST_STEPS)[:_PROMISING]
        poses = sorted(poses + _tried(search, start, promising, group, _MORE_STEPS), key=lambda p: p.objective)
    fitted = []
    distinct = _distinct(poses, search)
    # The runner-up is always fitted too: the margin says how sure the choice is.
    hopeful = [p for k, p in enumerate(distinct) if k < 2 or p.objective < distinct[0].objective + CLEAR]
    for pose in hopeful[:_FINALISTS]:
        fit, energies = fit_affine(coarse, replace(start, to_atlas=pose.to_atlas), group, iterations=40)
        fitted.append((replace(pose, to_atlas=fit.to_atlas, objective=per_voxel(coarse, fit)), fit, energies))
    fitted.sort(key=lambda item: item[0].objective)
    ranked = _distinct([pose for pose, _, _ in fitted], coarse)
    return fitted[0][1], ranked, fitted[0][2]


def describe(poses: Sequence[Pose]) -> str:
    """Return a line about the winner, and a warning where it's hardly one."""
    best = poses[0]
    text = f"pose {best.name}: objective {best.objective:.3f} per voxel"
    if len(poses) > 1:
        text += f", next {poses[1].name} {poses[1].objective:.3f}"
        if poses[1].objective - best.objective < TIE:
            text += ": as good as a tie, so look at the result or give --orientation"
    return text


def per_voxel(problem: Problem, fit: Fit) -> float:
    """Return the data term per voxel."""
    return problem.evaluate(fit).data / problem.observed


def _tried(search: Problem, start: Fit, poses: Sequence[Pose], group: AffineGroup, steps: int) -> list[Pose]:
    """Fit a few steps from each pose; return what was reached, the best first."""
    result = []
    for pose in poses:
        fit, _ = fit_affine(search, replace(start, to_atlas=pose.to_atlas), group, iterations=steps)
        result.append(replace(pose, to_atlas=fit.to_atlas, objective=per_voxel(search, fit)))
    return sorted(result, key=lambda pose: pose.objective)


def _turns() -> list[NDArray[np.float64]]:
    """Return rotation vectors that, after each of the 24 poses, cover all rotations."""
    steps = [v for v in itertools.product((-_TURN, 0.0, _TURN), repeat=3) if any(v)]
    return [np.array(v) for v in steps]


def _turned(pose: Pose, vector: NDArray[np.float64], problem: Problem) -> Pose:
    """Turn the target about its middle before ``pose``."""
    centre = centroid(problem.level.target)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return replace(pose, name=f"{pose.name} turned", to_atlas=pose.to_atlas @ turn)


def _distinct(poses: Sequence[Pose], problem: Problem) -> list[Pose]:
    """Leave out poses that take the target nearly where a better one takes it."""
    index = np.argwhere(problem.level.target.foreground)
    corners = problem.level.target.grid.index_to_um(index[:: max(1, len(index) // 50)])
    kept: list[Pose] = []
    places: list[NDArray[np.float64]] = []
    for pose in poses:
        place = corners @ pose.to_atlas[:3, :3].T + pose.to_atlas[:3, 3]
        near = 4 * problem.level.voxel_um
        if all(np.linalg.norm(place - other, axis=1).mean() > near for other in places):
            kept.append(pose)
            places.append(place)
    return kept
