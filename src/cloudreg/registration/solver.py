"""EM-LDDMM: the affine, the velocity, the contrast and the mixture that explain a target by an atlas.

Coarse to fine, each level repeats

1. a Gauss-Newton step of the velocity, solved by conjugate gradients in the metric of the prior, with the exact
   derivative of the discrete flow, put right by what the last steps did to it, and a line search on the marginal
   objective,
2. one EM update of the contrast and of the mixture

until the objective stops falling. Each level begins with a Gauss-Newton step of the affine (in the Lie algebra of its
group, damped) and with a wide matching class, which pulls tissue that is still far off, and narrows it to the noise.
Written from Tward et al., Front. Neurosci. 14:52, 2020 (model), Beg et al.,
IJCV 61:139-157, 2005 (LDDMM) and Arsigny et al., MICCAI 2006 (stationary velocities).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration import kernels
from cloudreg.registration.affine import AffineGroup
from cloudreg.registration.backend import Field, backend_of
from cloudreg.registration.contrast import Contrast
from cloudreg.registration.flow import AnyFlow, integrate, smallest_determinant
from cloudreg.registration.levels import Level
from cloudreg.registration.memory import Memory
from cloudreg.registration.mixture import Estimated, Mixture
from cloudreg.registration.smoothness import Motion, Smoothness, dot
from cloudreg.space import Grid

_MIN_DETERMINANT = 0.05
"""Steps that bring any cell of the map closer to folding are shortened."""

_FIRST_SIGMA, _COOLING = 0.2, 0.7
"""Tissue that still lies off its place differs from its prediction by many standard deviations of the noise, would be
taken for an artifact and pulled by nothing. So each level starts with a matching class this wide, which every step
narrows by this factor down to what the residuals say (graduated non-convexity: Blake and Zisserman, Visual
Reconstruction, MIT Press 1987)."""

_MIN_STIFFNESS = 0.2
"""Steps are lengthened by no more than the inverse of this."""

_HALVINGS = 8
"""Of a step, before the line search gives up."""

_INNER_STEPS = 20
"""Most steps of conjugate gradients in one of Gauss-Newton."""

_THINNED = 2 / 3
"""Part of a level's steps for which some of the voxels do, where these lie closer together than the deformation needs.
The last ones see all, and so less of the noise."""

_LONGEST_TURN = 0.5
"""Largest change of a parameter in a step of the affine: about radians, doublings and half brains."""

_FIRST_DAMPING = 1e-2
"""Of the affine's Gauss-Newton steps, relative to the diagonal of their curvature."""


@dataclass(frozen=True)
class Intensity:
    """How one channel of the atlas explains one of the target.

    Parameters
    ----------
    contrast
        From atlas to target grey.
    mixture
        What else a voxel may be.
    estimated
        What of the mixture follows the data.
    """

    contrast: Contrast
    mixture: Mixture
    estimated: frozenset[Estimated] = frozenset(("noise", "greys"))


@dataclass(frozen=True)
class Fit:
    """All unknowns.

    Parameters
    ----------
    to_atlas
        4 x 4, target um to atlas um.
    motion
        (z, y, x, 3), or (T, z, y, x, 3) for a velocity of T steps in time: the velocity, as
        `cloudreg.registration.flow.integrate` takes it, and its momentum. The prior is the product of the two. The
        solver computes where these fields are: see `cloudreg.registration.backend`.
    flow
        The integrated velocity, on ``velocity_grid``.
    intensities
        One for each pair of channels, that which finds the pose first.
    """

    to_atlas: NDArray[np.float64]
    motion: Motion
    flow: AnyFlow
    intensities: tuple[Intensity, ...]

    @property
    def contrast(self) -> Contrast:
        """The first pair's."""
        return self.intensities[0].contrast

    @property
    def mixture(self) -> Mixture:
        """The first pair's."""
        return self.intensities[0].mixture

    def with_sigmas(self, sigmas: Sequence[float]) -> Fit:
        """Return the same fit with other widths of the matching classes."""
        pairs = zip(self.intensities, sigmas, strict=True)
        return replace(self, intensities=tuple(replace(i, mixture=replace(i.mixture, sigma_match=s)) for i, s in pairs))

    def fetched(self) -> Fit:
        """Return the same fit with its fields in the main memory."""
        intensities = tuple(replace(i, contrast=i.contrast.fetched()) for i in self.intensities)
        return replace(self, motion=self.motion.fetched(), flow=self.flow.fetched(), intensities=intensities)


@dataclass(frozen=True)
class Evaluation:
    """The data term at a fit, and what the next EM update needs of each pair of channels."""

    data: float
    statistics: tuple[NDArray[np.float64], ...]
    moments: tuple[Field, ...]


@dataclass(frozen=True)
class Linearization:
    """The data term at a fit and its derivatives, as `cloudreg.registration.kernels.linearize` sums them."""

    data: float
    gradient: Field
    hessian: Field
    affine_gradient: NDArray[np.float64]
    affine_hessian: NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """What a fit says about every voxel of the target, in arrays (z, y, x) float32.

    Parameters
    ----------
    atlas
        Atlas value (normalised) pulled to the target.
    predicted
        The target grey that the model expects of matching tissue.
    match, artifact
        Posteriors; what is left of 1 is background.
    """

    atlas: NDArray[np.float32]
    predicted: NDArray[np.float32]
    match: NDArray[np.float32]
    artifact: NDArray[np.float32]


@dataclass(frozen=True)
class Energy:
    """One line of ``energies.csv``: the objective before a step, and by how much the step lowered it.

    Between steps the contrast and the mixture are estimated anew, which changes what is measured; so
    ``total`` may rise from line to line while every ``gained`` is positive.
    """

    level_um: float
    iteration: int
    step: str
    total: float
    data: float
    prior: float
    gained: float
    sigma_match: float


class Problem:
    """One level with its constant parts; computes the objective and its derivatives at a fit.

    Parameters
    ----------
    level
        Target and atlas at one resolution.
    more
        Further pairs of channels of the same two, on the same grids.
    velocity_grid
        Axis-aligned grid in atlas space.
    smoothness
        Prior of the velocity.
    prior_weight
        Weight of the prior, per um^2.
    """

    def __init__(
        self,
        level: Level,
        velocity_grid: Grid,
        smoothness: Smoothness,
        prior_weight: float,
        *,
        more: Sequence[Level] = (),
    ) -> None:
        self.levels = (level, *more)
        self.velocity_grid = velocity_grid
        self.smoothness = smoothness
        self.prior_weight = prior_weight
        self.softness = 1.0
        self.share = 1.0
        self._um_to_atlas = np.linalg.inv(level.atlas_grid.affine)

    def softened(self, softness: float) -> Problem:
        """Return the same problem with its prior divided by ``softness``."""
        other = copy(self)
        other.softness = softness
        return other

    def stiffened(self, factor: float) -> Problem:
        """Return the same problem with its prior multiplied by ``factor``."""
        return self.with_prior(self.velocity_grid, self.smoothness, self.prior_weight * factor)

    def with_prior(self, velocity_grid: Grid, smoothness: Smoothness, weight: float) -> Problem:
        """Return the same problem with another prior of the velocity."""
        other = copy(self)
        other.velocity_grid, other.smoothness, other.prior_weight = velocity_grid, smoothness, weight
        return other

    def with_prior_of(self, other: Problem) -> Problem:
        """Return the same problem with another one's prior of the velocity."""
        return self.with_prior(other.velocity_grid, other.smoothness, other.prior_weight)

    @property
    def level(self) -> Level:
        """The first pair's."""
        return self.levels[0]

    @property
    def observed(self) -> int:
        """How many grey values are to be explained."""
        return round(_visited(self.levels) / self.share)

    def thinned(self, apart_um: float) -> Problem:
        """Return the same problem, its sums estimated from planes and rows of voxels about ``apart_um`` apart."""
        levels = tuple(level.thinned(apart_um) for level in self.levels)
        if not 0 < _visited(levels) < _visited(self.levels):
            return self
        other = copy(self)
        other.levels, other.share = levels, _visited(levels) / self.observed
        return other

    def fetched(self) -> Problem:
        """Return the same problem with its images in the main memory."""
        other = copy(self)
        other.levels = tuple(level.fetched() for level in self.levels)
        return other

    def without(self, lost: NDArray[np.bool_]) -> Problem:
        """Return the same problem with the voxels of a (z, y, x) mask left out."""
        other = copy(self)
        other.levels = tuple(level.without(lost) for level in self.levels)
        return other

    def _arguments(self, fit: Fit) -> Iterator[tuple[Any, ...]]:
        """Yield the kernels' arguments for each pair of channels."""
        for level, intensity in zip(self.levels, fit.intensities, strict=True):
            yield self._arguments_of(level, intensity, fit)

    def _arguments_of(self, level: Level, intensity: Intensity, fit: Fit) -> tuple[Any, ...]:
        index_to_um = fit.to_atlas @ level.target.grid.affine
        um_to_velocity = np.linalg.inv(self.velocity_grid.affine)
        spacing = np.array(self.velocity_grid.voxel_size_um)[:, None]
        return (
            level.target.values,
            level.target.weight,
            level.active,
            level.atlas,
            level.outside,
            fit.flow.displacement,
            np.hstack([(um_to_velocity @ index_to_um)[:3], spacing]),
            (self._um_to_atlas @ index_to_um)[:3],
            np.ascontiguousarray(self._um_to_atlas[:3, :3]),
            intensity.contrast.coefficients,
            intensity.contrast.to_nodes,
            intensity.contrast.scale,
            intensity.mixture.packed(),
        )

    def evaluate(self, fit: Fit) -> Evaluation:
        """Return the data term and the sums for the EM update."""
        loop = backend_of(fit.flow.displacement).evaluate
        data, statistics, moments = zip(*(loop(*arguments) for arguments in self._arguments(fit)), strict=True)
        return Evaluation(sum(data) / self.share, statistics, moments)

    def explain(self, fit: Fit, pair: int = 0) -> Explanation:
        """Return what a fit says about every voxel, by one pair of channels; all of it in the main memory."""
        target, _, _, *model = self._arguments_of(self.levels[pair], fit.intensities[pair], fit)
        return Explanation(*kernels.explain(target, *model))

    def prior(self, fit: Fit) -> float:
        """Return the prior's part of the objective."""
        return 0.5 * self.prior_weight / self.softness * fit.motion.with_velocity(fit.motion)

    def linearize(self, fit: Fit, *, affine: bool = True) -> Linearization:
        """Return the data term and its derivatives; those by the affine only if wanted."""
        loop = backend_of(fit.flow.displacement).linearize
        parts = [loop(*arguments, affine=affine) for arguments in self._arguments(fit)]
        return Linearization(*(reduce(add, terms) / self.share for terms in zip(*parts, strict=True)))

    def downhill(self, fit: Fit, linear: Linearization) -> Field:
        """Return minus the derivative of the objective by the velocity: a momentum."""
        return -fit.flow.adjoint(linear.gradient) - self.prior_weight / self.softness * fit.motion.momentum

    def gauss_newton(self, fit: Fit, linear: Linearization, stiffness: float = 1.0) -> Callable[[Field], Motion]:
        """Return what takes a momentum that points downhill to the Gauss-Newton step of the motion.

        ``stiffness`` multiplies the data term's curvature.
        """
        flow, weight = fit.flow, self.prior_weight / self.softness
        # The curvature of a velocity, as a matrix at each node.
        halves = [flow.half_way_back(linear.hessian[..., k : k + 3]) for k in (0, 3)]
        hessian = [half[..., k] * stiffness for half in halves for k in range(3)]
        backend = backend_of(fit.flow.displacement)

        def curvature(motion: Motion) -> Field:
            return backend.curved(hessian, motion.velocity, weight, motion.momentum)

        return lambda downhill: _conjugate_gradients(curvature, downhill, self.smoothness.motion, _INNER_STEPS)

    def affine_step(
        self, fit: Fit, linear: Linearization, group: AffineGroup
    ) -> Callable[[float], NDArray[np.float64]]:
        """Return the damped Gauss-Newton update of ``to_atlas`` as a function of the damping."""
        index_to_um = fit.to_atlas @ self.level.target.grid.affine
        columns = np.stack([(g @ index_to_um)[:3].ravel() for g in group.tangents(fit.to_atlas)], axis=1)
        slope = columns.T @ linear.affine_gradient
        curvature = columns.T @ linear.affine_hessian @ columns
        diagonal = np.diag(np.diag(curvature) + 1e-12 * np.trace(curvature) + 1e-300)

        def update(damping: float) -> NDArray[np.float64]:
            theta = -np.linalg.solve(curvature + damping * diagonal, slope)
            # Where hardly anything overlaps, the curvature tells of no step that it is too long.
            return group.moved(fit.to_atlas, theta * min(1.0, _LONGEST_TURN / max(np.abs(theta).max(), 1e-30)))

        return update


def _visited(levels: Sequence[Level]) -> int:
    return sum(level.active.shape[0] for level in levels)


def fit_affine(
    problem: Problem, fit: Fit, group: AffineGroup, *, iterations: int, tolerance: float = 1e-4
) -> tuple[Fit, list[Energy]]:
    """Fit the affine, the contrast and the mixture; the velocity stays.

    The contrast comes first: by a wrong one even what lies in its place is moved.
    """
    fit = fit_intensities(problem, fit, iterations=1)
    energies: list[Energy] = []
    damping = _FIRST_DAMPING
    quiet = 0
    for iteration in range(iterations):
        linear = problem.linearize(fit, affine=True)
        moved, evaluation, damping = _affine_iteration(problem, fit, linear, group, damping)
        after = None if evaluation is None else evaluation.data + problem.prior(moved)
        energies.append(_energy(problem, fit, linear.data, after, iteration, "affine"))
        if evaluation is None:
            break
        fit = _em_update(moved, evaluation, None)
        quiet = quiet + 1 if energies[-1].gained < tolerance * problem.observed else 0
        if quiet >= 2:
            break
    return fit, energies


def fit_intensities(
    problem: Problem, fit: Fit, *, iterations: int, smoothing: NDArray[np.float64] | None = None
) -> Fit:
    """Fit the contrast, smoothed as `fit_velocity` does, and the mixture; what lies where stays."""
    for _ in range(iterations):
        fit = _em_update(fit, problem.evaluate(fit), smoothing)
    return fit


def fit_velocity(
    problem: Problem,
    fit: Fit,
    group: AffineGroup,
    *,
    iterations: int,
    apart_um: float,
    smoothing: NDArray[np.float64] | None,
    tolerance: float,
    advance: Callable[[int], None],
    far: bool = True,
) -> tuple[Fit, list[Energy]]:
    """Fit everything at one level.

    Parameters
    ----------
    problem, fit
        The level and where to start.
    group
        In which the affine moves.
    iterations
        Largest number of Gauss-Newton steps.
    apart_um
        All but the last third of them see only planes, and rows in these, that are about so far apart, where voxels are
        finer.
    smoothing
        Of the contrast, in nodes; None for a contrast that is the same everywhere.
    tolerance
        Stop when two steps in a row lower the objective by less than this, per observed voxel.
    advance
        Called with 1 after each step.
    far
        Tissue may lie far off its place: begin with a wide matching class.
    """
    energies: list[Energy] = []
    memory = Memory()
    taken: tuple[Motion, Field] | None = None
    quiet = 0
    stiffness = 1.0
    ended = False
    whole, problem = problem, problem.thinned(apart_um)
    thinned = problem is not whole
    for iteration in range(iterations):
        if thinned and (ended or iteration >= _THINNED * iterations):
            # Derivatives are of other voxels from here on, so that the last step's change tells nothing.
            problem, thinned, ended, taken, quiet = whole, False, False, None, 0
        if ended:
            break
        estimated = np.array([i.mixture.sigma_match for i in fit.intensities])
        used = np.maximum(estimated, _FIRST_SIGMA * _COOLING**iteration) if far else estimated
        settled = bool((used == estimated).all())
        fit = fit.with_sigmas(used.tolist())
        # The prior weakens with the data, so that only the shape of the data term changes, not their balance.
        problem = problem.softened(float((estimated**-2.0).sum() / (used**-2.0).sum()))
        if iteration == 0:
            linear = problem.linearize(fit, affine=True)
            moved, evaluation, _ = _affine_iteration(problem, fit, linear, group, _FIRST_DAMPING)
            if evaluation is not None:
                fit = _em_update(moved, evaluation, smoothing).with_sigmas(used.tolist())
        linear = problem.linearize(fit, affine=False)
        downhill = problem.downhill(fit, linear)
        if taken is not None:
            memory.remember(*taken, downhill)
        step = memory.improved(downhill, problem.gauss_newton(fit, linear, stiffness))
        promised = dot(step.velocity, downhill)
        moved, evaluation, length = _line_search(problem, fit, linear, step, promised)
        after = None if evaluation is None else evaluation.data + problem.prior(moved)
        energies.append(_energy(problem, fit, linear.data, after, iteration, "velocity"))
        advance(1)
        if evaluation is None:
            ended = stiffness == 1 and memory.empty
            stiffness, taken = 1.0, None
            memory.forget()
            continue
        # While the matching class still narrows, each step sees another objective.
        taken = (step.times(length), downhill) if settled else None
        stiffness = _stiffness(stiffness, energies[-1].gained, length * promised, length)
        fit = _em_update(moved, evaluation, smoothing)
        quiet = quiet + 1 if settled and energies[-1].gained < tolerance * problem.observed else 0
        ended = quiet >= 2
    return fit, energies


def _affine_iteration(
    problem: Problem, fit: Fit, linear: Linearization, group: AffineGroup, damping: float
) -> tuple[Fit, Evaluation | None, float]:
    """Raise the damping until the step lowers the data term; no evaluation where no step does."""
    update = problem.affine_step(fit, linear, group)
    for _ in range(6):
        candidate = replace(fit, to_atlas=update(damping))
        result = problem.evaluate(candidate)
        if result.data < linear.data:
            return candidate, result, max(damping / 5, 1e-6)
        damping *= 5
    return fit, None, damping


def _line_search(
    problem: Problem, fit: Fit, linear: Linearization, step: Motion, promised: float
) -> tuple[Fit, Evaluation | None, float]:
    """Halve the step until the marginal objective falls (Armijo) and no cell of the map comes near folding.

    Returns the fit with its evaluation, None where no step lowers the objective, and the length of the step.
    """
    start = linear.data + problem.prior(fit)
    length = 1.0
    for _ in range(_HALVINGS if promised > 0 else 0):
        motion = fit.motion.plus(length, step)
        flow = integrate(motion.velocity, fit.flow.spacing)
        if smallest_determinant(flow) > _MIN_DETERMINANT:
            candidate = replace(fit, motion=motion, flow=flow)
            result = problem.evaluate(candidate)
            if result.data + problem.prior(candidate) < start - 1e-4 * length * promised:
                return candidate, result, length
        length /= 2
    return fit, None, 0.0


def _stiffness(stiffness: float, gained: float, promised: float, length: float) -> float:
    """Return the next step's factor of the curvature, from what a step of ``length`` gained.

    Gauss-Newton with a mixture's posteriors takes the data term for stiffer than it is, and its steps are too short by
    up to four times. A quadratic whose curvature is c times the assumed one gains (1 - c length / 2) of what was
    promised.
    """
    curvature = 2 / length * (1 - gained / promised)
    return min(max(stiffness * max(curvature, 0.05), _MIN_STIFFNESS), 1.0)


def _em_update(fit: Fit, evaluation: Evaluation, smoothing: NDArray[np.float64] | None) -> Fit:
    """Re-estimate contrasts and mixtures from the posteriors."""
    parts = zip(fit.intensities, evaluation.statistics, evaluation.moments, strict=True)
    return replace(fit, intensities=tuple(_updated(*part, smoothing) for part in parts))


def _updated(
    intensity: Intensity,
    statistics: NDArray[np.float64],
    moments: Field,
    smoothing: NDArray[np.float64] | None,
) -> Intensity:
    if statistics[0] <= 0:
        return intensity
    matching = float(moments[..., 0].sum())
    mixture = intensity.mixture.refitted(statistics, matching, intensity.estimated)
    return replace(intensity, contrast=intensity.contrast.refitted(moments, smoothing), mixture=mixture)


def _conjugate_gradients(
    multiply: Callable[[Motion], Field],
    right: Field,
    precondition: Callable[[Field], Motion],
    iterations: int,
    tolerance: float = 0.2,
) -> Motion:
    """Solve ``multiply(x) = right``, starting from 0, to a relative residual of ``tolerance`` in the prior's norm.

    The kernel is the preconditioner. It turns each residual, a momentum, into the velocity that goes with it, so that
    the prior's part of the product, which is the momentum itself, costs nothing, and a step one convolution.
    """
    residual = right
    direction = precondition(residual)
    x = Motion(0 * residual, 0 * residual)
    size = first = direction.with_velocity(direction)
    for _ in range(iterations):
        if size <= tolerance**2 * first or size == 0:
            break
        image = multiply(direction)
        length = size / dot(direction.velocity, image)
        x = x.plus(length, direction)
        residual = residual - length * image
        smoothed = precondition(residual)
        size, previous = smoothed.with_velocity(smoothed), size
        direction = smoothed.plus(size / previous, direction)
    return x


def _energy(problem: Problem, fit: Fit, data: float, after: float | None, iteration: int, step: str) -> Energy:
    """Return the line for a step from ``fit``; ``after`` is the objective that it reached, None if it moved nothing."""
    prior = problem.prior(fit)
    gained = 0.0 if after is None else data + prior - after
    return Energy(
        problem.level.voxel_um,
        iteration,
        step,
        data + prior,
        data,
        prior,
        gained,
        fit.mixture.sigma_match,
    )
