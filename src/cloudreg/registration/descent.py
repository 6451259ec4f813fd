"""The levels of a fit, from coarse to fine, and what of the problem changes on the way.

The velocity's grid gets finer for the last level; and where the greys of a template tell little of the target, the
template is given the target's (`cloudreg.registration.recolour`) and the levels go on with that. How stiff the map is
at voxels finer than a unit, and in the end, is asked of the data (`cloudreg.registration.stiffness`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.affine import AffineGroup
from cloudreg.registration.backend import Backend, Field, backend_of
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.flow import integrate
from cloudreg.registration.levels import Image, Level, make_level, thinned
from cloudreg.registration.mixture import Estimated, Mixture
from cloudreg.registration.recolour import needs_colour, recoloured, tells_little, told
from cloudreg.registration.smoothness import Smoothness
from cloudreg.registration.solver import Energy, Fit, Intensity, Problem, fit_intensities, fit_velocity
from cloudreg.registration.stiffness import blocks_tell, crowding, softened
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField

_LATER: frozenset[Estimated] = frozenset(("variances", "priors"))
"""What of the mixture is not estimated at the first level."""

_SETTLING = 5
"""EM updates of a channel that joins, or of other voxels, before anything moves."""

_SETTLED = 12
"""Steps of the velocity with a prior that was weakened in the end."""

_LOCAL = 3
"""Units that a voxel stays below where the contrast varies over the target."""

_FINE = 0.75
"""Units that a voxel stays below where it may be that several count as one."""


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


class Descent:
    """What the levels of one fit share.

    Parameters
    ----------
    channels
        Pairs of target and atlas, all on the grids of the first two, where the solver computes.
    grid
        The last level's, of the velocity; the others use every other node.
    scales, settings
        See `cloudreg.registration.fit.solve`.
    regions
        See there.
    home
        Where the images are.
    coloured
        For each pair, whether its atlas is given the target's greys.
    share
        How much of the target's greys the first pair's atlas tells, if that is known already
        (`cloudreg.registration.recolour.told`).
    """

    def __init__(
        self,
        channels: Sequence[tuple[Image, Image]],
        grid: Grid,
        scales: Scales,
        settings: RegistrationSettings,
        *,
        regions: Callable[[], NDArray[np.integer]] | None,
        home: Backend,
        coloured: tuple[bool, ...] | None = None,
        share: float | None = None,
    ) -> None:
        self.scales, self.settings = scales, settings
        self.coloured = coloured or (False,) * len(channels)
        self.share = share
        self.softness = 1.0
        self._plain = list(channels)
        self._used = list(channels)
        self._regions, self._home = regions, home
        # Several channels of the atlas that explain one grey value count it as often.
        self._repeats = len(channels) / len({id(seen) for seen, _ in channels})
        self._fine = grid
        self.grid = every_other_node(grid) if len(scales.levels) > 1 else grid
        self.smoothness = self._smoothness(self.grid)
        self._make_levels()

    def _smoothness(self, grid: Grid) -> Smoothness:
        return Smoothness(grid.shape, np.array(grid.voxel_size_um, dtype=np.float32), self.scales.kernel)

    def _make_levels(self) -> None:
        self.levels = [make_level(*self._used[0], voxel_um) for voxel_um in self.scales.levels]

    def without(self, lost: Sequence[NDArray[np.bool_]]) -> None:
        """Take all weight from the target where any of the (z, y, x) masks is true."""
        self._plain = [(seen.without(lost), template) for seen, template in self._plain]
        self._used = list(self._plain)
        self._make_levels()

    def problem(self, level: Level, weight: float, further: Sequence[Level] = ()) -> Problem:
        """Return the problem of a level (and of that of further pairs), ``weight`` being the prior's at 100 um."""
        return Problem(level, self.grid, self.smoothness, weight * (100 / self.scales.unit) ** 2, more=further)

    def most_steps(self, number: int) -> int:
        """Return how many steps of the velocity a level takes at most."""
        return int(at_level(self.settings.iterations, number, len(self.levels)))

    def descend(
        self, fit: Fit, number: int, group: AffineGroup, report: Callable[[str], None], advance: Callable[[int], None]
    ) -> tuple[Fit, Problem, list[Energy]]:
        """Fit everything at one level; return the fit, the problem and a line for each step.

        Where this is the first level whose contrast is local, it tells whether the atlas is to be given the target's
        greys; if so, the level is fitted once more with these.
        """
        fit = self._prepared(fit, number)
        fit, problem, energies = self._deformed(fit, number, group, advance)
        first = next((n for n in range(len(self.levels)) if self._is_local(n)), None)
        if number == first and self.settings.deform:
            fetched, there = problem.fetched(), fit.fetched()
            shares = [told(level.target, fetched.explain(there, pair)) for pair, level in enumerate(fetched.levels)]
            self.share = shares[0]
            if self._regions is not None and self.settings.recolour:
                self.coloured = tuple(needs_colour(share) for share in shares)
            if any(self.coloured):
                report(
                    f"the template's greys tell {min(shares):.0%} of the target's: its regions get the greys that they "
                    "have in the target"
                )
                fit, problem, steps = self._deformed(fit, number, group, lambda n: None)
                energies += steps
        if number + 1 == len(self.levels) and self.settings.deform and self.settings.soften:
            fit, problem, steps = self._softened(fit, problem, number, group, report)
            energies += steps
        return fit, problem, [replace(energy, iteration=n) for n, energy in enumerate(energies)]

    def _is_local(self, number: int) -> bool:
        return self._smoothing(self.levels[number]) is not None

    def _prepared(self, fit: Fit, number: int) -> Fit:
        """Return the fit with what a level has more than the one before: channels, nodes, estimates."""
        if number == 0 and len(self._used) > 1:
            joined = [
                first_intensity(other.target, pair[1].reduced(self.scales.levels[-1]), self.settings)
                for other, pair in zip(self._further(fit, self.levels[0]), self._used[1:], strict=True)
            ]
            fit = replace(fit, intensities=(*fit.intensities, *joined))
            fit = fit_intensities(self._problem_at(fit, number), fit, iterations=_SETTLING)
        if number + 1 == len(self.levels) and self.grid != self._fine:
            before, self.grid, self.smoothness = self.smoothness, self._fine, self._smoothness(self._fine)
            motion = self.smoothness.refined(fit.motion, before)
            fit = replace(fit, motion=motion, flow=integrate(motion.velocity, self.smoothness.spacing))
        if number > 0:
            # What lies far off its place at the first level would be counted as artifact.
            follows = frozenset(self.settings.estimate)
            fit = replace(fit, intensities=tuple(replace(i, estimated=follows) for i in fit.intensities))
        return fit

    def _margin(self, level: Level) -> float:
        # The finer the level, the less is left to move.
        return max(2 * self.scales.unit, level.voxel_um)

    def _further(self, fit: Fit, level: Level) -> list[Level]:
        margin = self._margin(level)
        return [make_level(*pair, level.voxel_um).near_the_brain(fit.to_atlas, margin) for pair in self._used[1:]]

    def _problem_at(self, fit: Fit, number: int) -> Problem:
        whole = self.levels[number]
        # Greys that were guessed are wrong in patches, and the finest level would bend the map to them.
        count = len(self.levels)
        bound = min(number, count - 2) if any(self.coloured) else number
        weight = self._repeats * at_level(self.settings.regularization, bound, count)
        near = whole.near_the_brain(fit.to_atlas, self._margin(whole))
        return self.problem(near, weight, self._further(fit, whole))

    def _deformed(
        self, fit: Fit, number: int, group: AffineGroup, advance: Callable[[int], None]
    ) -> tuple[Fit, Problem, list[Energy]]:
        most = self.most_steps(number)
        if not self.settings.deform:
            return fit, self._problem_at(fit, number), []
        # Half way, the regions lie better, and so their greys are known better.
        parts = (most // 2, most - most // 2) if any(self.coloured) else (most,)
        energies: list[Energy] = []
        for steps in parts:
            if any(self.coloured):
                fit = self._recoloured(fit)
            problem = self._problem_at(fit, number)
            problem = problem.stiffened(self._crowding(problem, fit, number))
            fit, taken = self._fitted(problem, self._spread(fit, problem.level), number, group, steps, advance)
            energies += taken
        advance(most - len(energies))
        return fit, problem, energies

    def _fitted(
        self,
        problem: Problem,
        fit: Fit,
        number: int,
        group: AffineGroup,
        steps: int,
        advance: Callable[[int], None] = lambda n: None,
        *,
        far: bool = True,
    ) -> tuple[Fit, list[Energy]]:
        return fit_velocity(
            problem,
            fit,
            group,
            iterations=steps,
            apart_um=self.scales.unit,
            smoothing=self._smoothing(problem.level),
            tolerance=3e-5 if number + 1 == len(self.levels) else 1e-4,
            advance=advance,
            far=far,
        )

    def _smoothing(self, level: Level) -> NDArray[np.float64] | None:
        """Return over how many nodes the contrast is smoothed; None where it's the same all over the target."""
        unit = self.scales.unit
        if level.voxel_um >= _LOCAL * unit:
            return None
        return np.full(3, (4 if level.voxel_um > 1.5 * unit else 2.5) * unit / self.scales.contrast_spacing)

    def _spread(self, fit: Fit, level: Level) -> Fit:
        """Return the fit with contrasts that may vary over the target, where the level's do."""
        if self._smoothing(level) is None:
            return fit
        seen = level.target.grid
        step = self.scales.contrast_spacing / np.array(seen.voxel_size_um)
        spread = [replace(i, contrast=i.contrast.on_nodes(seen.shape, step)) for i in fit.intensities]
        return replace(fit, intensities=tuple(spread))

    def _crowding(self, problem: Problem, fit: Fit, number: int) -> float:
        """Return how many voxels of a level count as one (`cloudreg.registration.stiffness.crowding`)."""
        unit = self._last_of_units(number)
        if unit == number:
            return 1.0
        apart = self._problem_at(fit, unit)
        return crowding(self._settled(apart, fit), self._settled(problem.thinned(self.scales.unit), fit))

    def _last_of_units(self, number: int) -> int:
        """Return the finest level up to one whose voxels are no finer than a unit; that one itself where none is."""
        coarse = [n for n in range(number + 1) if self.levels[n].voxel_um >= _FINE * self.scales.unit]
        return coarse[-1] if coarse else number

    def _settled(self, problem: Problem, fit: Fit) -> tuple[Problem, Fit]:
        """Return a problem of some level with the same map, and the contrast and the mixture that suit it there."""
        there, smoothing = self._spread(fit, problem.level), self._smoothing(problem.level)
        return problem, fit_intensities(problem, there, iterations=_SETTLING, smoothing=smoothing)

    def _softened(
        self, fit: Fit, problem: Problem, number: int, group: AffineGroup, report: Callable[[str], None]
    ) -> tuple[Fit, Problem, list[Energy]]:
        """Weaken the prior where that foretells more; greys that are guessed or tell little are followed no closer."""
        if any(self.coloured) or (self.share is not None and tells_little(self.share)):
            return fit, problem, []
        unit = self._last_of_units(number)
        # Finer voxels are many, and their residuals' shape is no finer.
        seen = (problem, fit) if unit == number else self._settled(self._problem_at(fit, unit), fit)
        if not blocks_tell(*seen, self.scales.unit):
            return fit, problem, []
        report("fitting with part of the target withheld, to see whether a softer map foretells it better")

        def fitted(problem: Problem, fit: Fit, steps: int) -> Fit:
            return self._fitted(problem, fit, number, group, steps, far=False)[0]

        softer, start = softened(problem, fit, fitted, self.scales.unit)
        if softer is problem:
            return fit, problem, []
        self.softness = round(problem.prior_weight / softer.prior_weight, 6)
        text = f"a softer map foretells more of the target: the prior is weakened to 1/{self.softness:.0f}"
        if softer.smoothness.length < self.smoothness.length:
            text += f", its kernel shortened to {softer.smoothness.length:.0f} um"
        report(text)
        self.grid, self.smoothness = softer.velocity_grid, softer.smoothness
        fit, energies = self._fitted(softer, start, number, group, _SETTLED, far=False)
        return fit, softer, energies

    def _recoloured(self, fit: Fit) -> Fit:
        """Give the atlases that need it the greys that the target has where the fit lays them."""
        if self._regions is None:
            return fit
        regions = self._regions()
        displacement = DisplacementField(self.grid, np.moveaxis(fit.flow.fetched().displacement, 3, 0))
        intensities = list(fit.intensities)
        for pair, (seen, template) in enumerate(self._plain):
            if self.coloured[pair]:
                new = recoloured(
                    seen.fetched(), template.fetched(), regions, fit.to_atlas, displacement, self.scales.unit
                )
                self._used[pair] = seen, new.on(self._home)
                values = _inside(new.reduced(self.scales.levels[-1]))
                # The greys are the target's already.
                same = float(values.min()), float(np.quantile(values, 0.9))
                contrast = initial_contrast(values, self.settings.contrast_order, same)
                intensities[pair] = replace(intensities[pair], contrast=contrast)
        self._make_levels()
        return replace(fit, intensities=tuple(intensities))


def every_other_node(grid: Grid) -> Grid:
    """Return the grid of the nodes with even indices."""
    spacing = [2 * v for v in grid.voxel_size_um]
    return Grid.from_spacing([n // 2 for n in grid.shape], spacing, grid.origin_um.tolist())


def first_intensity(target: Image, atlas: Image, settings: RegistrationSettings) -> Intensity:
    """Return a contrast that takes the atlas's bright tissue to the target's, and a wide mixture."""
    seen = target.fetched()
    bright = float(np.quantile(seen.values[seen.foreground], 0.9))
    contrast = initial_contrast(_inside(atlas), settings.contrast_order, (0.0, bright))
    artifact, background = (0.2, 0.01) if settings.mixture else (1e-9, 1e-9)
    mixture = Mixture(0.3, 0.5, 0.2, 1.0, 0.0, (1 - artifact - background, artifact, background))
    return Intensity(contrast, mixture, estimated_at_first(settings))


def estimated_at_first(settings: RegistrationSettings) -> frozenset[Estimated]:
    """Return what of the mixture follows the data at the first level."""
    return frozenset(settings.estimate) - _LATER


def at_level(values: Sequence[float], number: int, count: int) -> float:
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
