"""How stiff a map is to be, where the data can tell.

The likelihood takes residuals for noise that is independent from voxel to voxel. In simulations it is. In real images
most of it is what the model can't say, and has a shape; then no one weight of the prior suits all images, and more
voxels are not more evidence. So two things are asked of the data.

*How many voxels count as one* (`crowding`): residuals at voxels of a unit (100 um in a mouse) and at finer ones, by the
same map, tell whether the finer ones have noise of their own. Independent noise grows as voxels shrink; what they share
does not.

*Whether a softer map foretells more* (`softened`): some blocks of the target are withheld, and the map is fitted with a
weaker prior, and then with one of a shorter kernel. Where that explains the withheld blocks better by more than chance,
there is more to deform than the prior expects, as in the folds of two people's brains. A map that only follows noise,
or what the contrast can't say, explains them no better (cross-validation: Stone, J. R. Statist. Soc. B 36:111-147,
1974).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudreg.registration.flow import integrate
from cloudreg.registration.smoothness import Smoothness
from cloudreg.registration.solver import Fit, Problem
from cloudreg.space import Grid

_NOISE = 0.3
"""Correlation of residuals at neighbouring voxels below which they pass for noise, which no softer map explains: up to
0.3 in simulations, 0.34 to 0.74 in real images."""

_FAR = 0.1
"""Correlation of residuals half a block apart above which what is withheld follows from what is shown, whatever the
map. Under uneven light (0.4 in a phantom) every softer map seemed to foretell more, and was worse."""

_PARTS, _SURE = 16, 1.0
"""What is withheld is judged in so many parts, and a softer map must foretell more of it by so many standard errors: of
models as good as each other, the simplest is taken (Breiman, Friedman, Olshen, Stone, Classification and Regression
Trees, 1984, 3.4.3)."""

_WEAKER = 5.0
"""By how much the prior is weakened."""

_SHORTER, _CLOSER = 0.6, 0.7
"""By how much its kernel is shortened, and the nodes of the velocity are moved together."""

_WITHHELD, _BLOCK = 0.12, 8.0
"""Part of the target, and the size of its blocks: in units, and at least in voxels. Residuals that are no noise reach
over several voxels: in blocks half as large, a phantom's map that followed a false texture seemed to foretell it."""

_STEPS = 6
"""Of the velocity, in a trial."""


def crowding(apart: tuple[Problem, Fit], here: tuple[Problem, Fit]) -> float:
    """Return how many voxels of a problem count as one.

    Parameters
    ----------
    apart, here
        The problem at voxels of a unit, and that at finer ones; each with the fit of the same map, its contrast and its
        mixture settled there.

    Returns
    -------
    float
        From 1, where the residuals of the finer voxels are independent, to the number of these in one of the others,
        where they share all. The mean over the pairs of channels.
    """
    coarse, fine = (_variances(problem, fit) for problem, fit in (apart, here))
    sizes = [problem.level.target.grid.voxel_volume_um3 for problem, _ in (apart, here)]
    children = max(1.0, sizes[0] / sizes[1])
    return float(np.clip(children * np.mean(coarse / fine), 1.0, children))


def _variances(problem: Problem, fit: Fit) -> NDArray[np.float64]:
    """Return the residual's variance over matching tissue, of each pair of channels."""
    sums = problem.evaluate(fit).statistics
    return np.array([max(float(squares), 1e-12) / max(float(count), 1e-12) for count, squares, *_ in sums])


def correlations(problem: Problem, fit: Fit, lags: Sequence[int]) -> list[float]:
    """Return how the first pair's residuals correlate between tissue voxels that lie so many voxels apart along x.

    It is 0 where hardly two voxels do.
    """
    fetched, there = problem.fetched(), fit.fetched()
    level = fetched.level
    explained = fetched.explain(there)
    tissue = (explained.match > 0.5) & (explained.atlas > 0.15) & (level.target.weight > 0)
    residual = level.target.values - explained.predicted
    found = []
    for lag in lags:
        both = tissue[..., lag:] & tissue[..., :-lag]
        left, right = (residual[part][both].astype(float) for part in (np.s_[..., :-lag], np.s_[..., lag:]))
        found.append(float(np.corrcoef(left, right)[0, 1]) if left.size > 100 else 0.0)
    return found


def blocks_tell(problem: Problem, fit: Fit, unit_um: float) -> bool:
    """Tell whether residuals are no noise, and yet so short that what is shown does not tell what is withheld."""
    grid = problem.level.target.grid
    near, far = correlations(problem, fit, (1, round(_block_um(grid, unit_um) / 2 / grid.voxel_size_um[2])))
    return near >= _NOISE and far <= _FAR


def _block_um(grid: Grid, unit_um: float) -> float:
    return _BLOCK * max(unit_um, *grid.voxel_size_um)


def softened(
    problem: Problem, fit: Fit, fitted: Callable[[Problem, Fit, int], Fit], unit_um: float
) -> tuple[Problem, Fit]:
    """Weaken the prior, and then shorten its kernel, if that foretells more of what is withheld.

    Parameters
    ----------
    problem, fit
        The finest level and what was fitted there.
    fitted
        Takes so many steps of the velocity in a problem, from a fit on.
    unit_um
        The unit of length.

    Returns
    -------
    Problem, Fit
        The same problem with the softest prior that foretold more, and where to go on from there: a fit with that
        prior, part of the target withheld. What was given, where none did.
    """
    target, few = problem.level.target, problem.thinned(unit_um)
    foreground = target.fetched().foreground
    part = blocks(target.grid, _block_um(target.grid, unit_um), _PARTS, _WITHHELD)
    hidden = [few.without((part != k) | ~foreground) for k in range(_PARTS)]
    hidden = [one for one in hidden if one.observed]
    if len(hidden) < 2:
        return problem, fit
    sizes = np.array([one.observed for one in hidden])

    def foretold(shown: Problem, found: Fit) -> NDArray[np.float64]:
        # By one mixture, so that no noise that was estimated anew has a part in it.
        alike = (
            replace(i, mixture=before.mixture) for i, before in zip(found.intensities, fit.intensities, strict=True)
        )
        judged = replace(found, intensities=tuple(alike))
        return -np.array([one.with_prior_of(shown).evaluate(judged).data for one in hidden])

    # What was withheld is in the fit already: it has to be forgotten first.
    shown = few.without(part >= 0)
    best = fitted(shown, fit, _STEPS)
    found = problem, fit
    for soften in (weaker, shorter):
        softer, start = soften(shown, best)
        # More steps gain by themselves: the prior that there is gets as many.
        stiff, soft = fitted(shown, best, _STEPS), fitted(softer, start, _STEPS)
        if certainty(foretold(softer, soft) - foretold(shown, stiff), sizes) < _SURE:
            break
        shown, best = softer, soft
        found = problem.with_prior_of(shown), best
    return found


def weaker(problem: Problem, fit: Fit) -> tuple[Problem, Fit]:
    """Return the problem with a weaker prior, and where to start from there: the fit as it is."""
    return problem.stiffened(1 / _WEAKER), fit


def shorter(problem: Problem, fit: Fit) -> tuple[Problem, Fit]:
    """Return the problem with a shorter kernel, and more nodes of the velocity in the same period; and the fit there.

    The map stays: the velocity is interpolated, and its momentum is the one that the new kernel turns into it.
    """
    before, grid = problem.smoothness, problem.velocity_grid
    shape = [scipy.fft.next_fast_len(int(np.ceil(n / _CLOSER)), real=True) for n in grid.shape]
    spacing = [v * n / more for v, n, more in zip(grid.voxel_size_um, grid.shape, shape, strict=True)]
    closer = Grid.from_spacing(shape, spacing, grid.origin_um.tolist())
    smoothness = Smoothness(closer.shape, np.array(spacing, dtype=np.float32), before.length * _SHORTER)
    motion = smoothness.refined(fit.motion, before)
    flow = integrate(motion.velocity, smoothness.spacing)
    return problem.with_prior(closer, smoothness, problem.prior_weight), replace(fit, motion=motion, flow=flow)


def certainty(gains: NDArray[np.float64], sizes: NDArray[np.integer]) -> float:
    """Return the mean gain of a voxel, in standard errors.

    Parameters
    ----------
    gains, sizes
        Of each of two or more parts: what all its voxels gained, and how many there are. Parts are independent of one
        another, voxels of a part need not be (a ratio estimator: Cochran, Sampling Techniques, 3rd ed., 6.4).
    """
    spread = gains - gains.sum() / sizes.sum() * sizes
    error = float(np.sqrt((spread**2).sum() * len(gains) / (len(gains) - 1)))
    return float(gains.sum()) / max(error, 1e-12)


def blocks(grid: Grid, size_um: float, parts: int, share: float) -> NDArray[np.int8]:
    """Cut a grid into blocks of ``size_um`` and choose about a ``share`` of them, the same each time.

    Returns
    -------
    ndarray, shape (z, y, x)
        -1 where nothing was chosen, and elsewhere to which of the ``parts``, alike in size, a block belongs.
    """
    index = [(np.arange(n) * v / size_um).astype(int) for n, v in zip(grid.shape, grid.voxel_size_um, strict=True)]
    drawn = np.random.default_rng(0).random([int(i[-1]) + 1 for i in index])
    part = np.where(drawn < share, drawn / share * parts, -1).astype(np.int8)
    return np.asarray(part[np.ix_(*index)])
