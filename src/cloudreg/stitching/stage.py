"""What the stage says of where tiles lie: as it really moved, and how well it did.

The stage's nominal positions may be off by the same step from row to row and from column to column (a camera that is
turned, a pixel of another size); what is left is jitter and slow drift.

While links are judged, the step is the median deviation of all east links and of all south links: robust, and noisy
where links are few. After that it is learned, along each axis, from the tiles that the images hold. A step counts as
much as its evidence is against none at all, for it is extrapolated where no image says anything. Of the rest x_i, the
deviations of neighbours are taken for a conditional autoregression [1]_,

    minus log density = 1/2 (a sum x_i^2 + s sum over neighbours (x_i - x_j)^2) + ...

With s = 0 each tile errs by itself; with a = 0 neighbours err together. Both follow from the most likely answer to how
well a tile's neighbours foretell it.

References
----------
.. [1] J. Besag, "Statistical analysis of non-lattice data", J. R. Stat. Soc. D 24 (1975), doi:10.2307/2987782.
.. [2] R. E. Kass, L. Wasserman, "A reference Bayesian test for nested hypotheses and its relationship to the Schwarz
   criterion", J. Am. Stat. Assoc. 90 (1995), doi:10.1080/01621459.1995.10476592.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Below this many links in a direction, the stage is taken at its word.
_FEWEST_LINKS = 3
# From fewer tiles, how well the stage did is not learned.
_FEWEST_TILES = 6
# How much more neighbours may err together than each by itself.
_TOGETHER = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# However exact the stage seems, a tile may still lie this far from where it says, in pixels.
_LEAST_PX = 1.0
# Standard deviation of the step from row to row, or column to column, where only one of them is known: a part of the
# distance of tiles.
_UNSEEN_STEP = 0.01


@dataclass(frozen=True)
class Stage:
    """Where the stage put the tiles, and how well it is known.

    Parameters
    ----------
    model
        (n, 3), where tiles are, z y x.
    own, together
        (3,), 1/px^2, inverse variances: of each tile's own error, and of the difference of neighbours' errors.
    steps
        (n, 3, k), errors of the model that all tiles have in common: each a change of it by one standard deviation.
    """

    model: Array
    own: Array
    together: Array
    steps: Array


def robust_model(nominal: Array, pairs: Array, ends: Array, shifts: Array) -> Array:
    """Return where tiles are (n, 3) by a stage that moved as most links (k, 2) measured, (k, 3).

    Parameters
    ----------
    nominal
        (n, 3), nominal positions.
    pairs
        (p, 2), all neighbours.
    """
    deviation = shifts - (nominal[ends[:, 1]] - nominal[ends[:, 0]])
    correction = np.zeros((2, 3))
    for direction in (0, 1):
        along = deviation[_direction(nominal, ends) == direction]
        if len(along) >= _FEWEST_LINKS:
            correction[direction] = np.median(along, axis=0)
    moved = _cells(nominal, pairs) @ correction
    return np.asarray(nominal + moved - moved.mean(axis=0))


def learned_stage(nominal: Array, pairs: Array, positions: Array, tiles: Array) -> Stage | None:
    """Learn from the tiles that the images hold.

    Parameters
    ----------
    nominal, pairs
        As for `robust_model`.
    positions
        (n, 3), where tiles are.
    tiles
        Indices of those of which it is known.

    Returns
    -------
    Stage or None
        None if too few are known.
    """
    if len(tiles) < _FEWEST_TILES:
        return None
    cells = _cells(nominal, pairs)
    cells = cells - cells[tiles].mean(axis=0)
    pitch = np.array([_pitch(nominal, pairs, direction) for direction in (0, 1)])
    deviation = positions - nominal
    model, own, together = np.empty_like(nominal), np.empty(3), np.empty(3)
    steps = np.zeros((*nominal.shape, 6))
    for axis in range(3):
        mean = deviation[tiles, axis].mean()
        step, sigma = _step(cells[tiles], deviation[tiles, axis] - mean, _UNSEEN_STEP * pitch)
        moved = mean + cells @ step
        model[:, axis] = nominal[:, axis] + moved
        steps[:, axis, 2 * axis : 2 * axis + 2] = cells * sigma
        own[axis], together[axis] = _scatter(deviation[:, axis] - moved, tiles, pairs)
    return Stage(model, own, together, steps)


def _step(cells: Array, off: Array, unseen: Array) -> tuple[Array, Array]:
    """Return by how much tiles are off per row and per column, (2,), and the standard deviation of both.

    Each is an average of none and of the least-squares step, by their evidence: that of a step whose prior is as wide
    as one tile alone leaves it [2]_.
    """
    count = len(off)
    seen = np.ptp(cells, axis=0) > 0.5
    step, sigma = np.zeros(2), np.where(seen, 0.0, unseen)
    if not seen.any():
        return step, sigma
    design = cells[:, seen]
    inverse = np.linalg.inv(design.T @ design + 1e-9 * np.eye(seen.sum()))
    fitted = inverse @ (design.T @ off)
    variance = float(((off - design @ fitted) ** 2).sum()) / max(count - 1 - int(seen.sum()), 1) + 1e-12
    variances = variance * np.diag(inverse)
    shrink = count / (count + 1)
    odds = np.exp(np.minimum(0.5 * shrink * fitted**2 / variances, 500)) / np.sqrt(count + 1)
    weight = odds / (1 + odds)
    found = weight * shrink * fitted
    step[seen] = found
    sigma[seen] = np.sqrt(weight * (shrink * variances + (shrink * fitted - found) ** 2) + (1 - weight) * found**2)
    return step, sigma


def _scatter(off: Array, tiles: Array, pairs: Array) -> tuple[float, float]:
    """Return the inverse variances of a tile's own error and of the difference of neighbours' errors along an axis."""
    known = np.zeros(len(off), dtype=bool)
    known[tiles] = True
    inside = pairs[known[pairs].all(axis=1)]
    count = np.bincount(inside.ravel(), minlength=len(off))[tiles]
    around = np.bincount(inside[:, 0], off[inside[:, 1]], len(off))
    around += np.bincount(inside[:, 1], off[inside[:, 0]], len(off))
    best, own, step = -np.inf, 0.0, 0.0
    for together in _TOGETHER:
        precision = 1 + together * count
        rest = off[tiles] - together * around[tiles] / precision
        variance = float((precision * rest**2).mean()) + 1e-12
        likelihood = float(np.log(precision).mean() - np.log(variance))
        if likelihood > best:
            best = likelihood
            own = 1 / max(variance, (1 + 4 * together) * _LEAST_PX**2)
            step = together * own
    return own, step


def _cells(nominal: Array, pairs: Array) -> Array:
    """Return the places of the tiles in rows and columns, (n, 2), which need not be whole numbers."""
    return np.asarray(nominal[:, 1:] / [_pitch(nominal, pairs, direction) for direction in (0, 1)])


def _direction(nominal: Array, pairs: Array) -> Array:
    """Return 0 for pairs along y (south) and 1 for pairs along x (east)."""
    step = np.abs(nominal[pairs[:, 1]] - nominal[pairs[:, 0]])
    return np.asarray(step[:, 2] > step[:, 1], dtype=int)


def _pitch(nominal: Array, pairs: Array, direction: int) -> float:
    """Nominal distance of neighbours in a direction; 1 where there are none (then nothing is measured either)."""
    steps = (nominal[pairs[:, 1]] - nominal[pairs[:, 0]])[_direction(nominal, pairs) == direction]
    return float(np.median(steps[:, 1 + direction])) if len(steps) else 1.0
