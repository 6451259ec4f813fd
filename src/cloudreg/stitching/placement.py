"""Where all tiles lie: weighted least squares over all reliable links, and the stage where there are none.

The positions x minimise, axis by axis,

    sum over links  w r |x_second - x_first - shift|^2
  + sum over neighbours  s |x_second - x_first - step|^2  +  sum over tiles  s/100 |x - model|^2

with w the link's weight, r its robust weight, and s the stage's weight. ``step`` and ``model`` are the stage as it
really moved: the nominal positions, corrected by the median deviation of all east links and of all south links. So a
tile without links keeps its place beside its neighbours, and no part of the grid can drift away.

A wrong link breaks the loops that it is in. Robust weights find it: r starts at 1 for all, and its scale is lowered
step by step (graduated non-convexity) until links off by more than about a pixel count for nothing.

References
----------
H. Yang, P. Antonante, V. Tzoumas, L. Carlone, "Graduated non-convexity for robust spatial perception: from non-minimal
solvers to global outlier rejection", IEEE Robot. Autom. Lett. 5 (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from cloudreg.settings import AlignSettings
from cloudreg.stitching.links import Link, neighbours
from cloudreg.tiles import Acquisition

Array = NDArray[Any]

# Residual, in pixels, at which a link counts a quarter in the end.
_ROBUST_PX = 1.0
_SCALE_STEP = 0.7
# A link farther off than this, and than four robust standard deviations, is an outlier.
_OUTLIER_PX = 2.0
# The stage's absolute position only decides what nothing else does.
_ABSOLUTE = 0.01
# Below this many links in a direction, the stage is taken at its word.
_FEWEST_FOR_STAGE = 3


@dataclass(frozen=True)
class Placement:
    """Positions of all tiles.

    Parameters
    ----------
    positions_px
        (n, 3), z y x of each tile's first pixel, in the acquisition's order; in the frame of the nominal positions.
    residuals_px
        (m, 3), what each link measured minus what became of it; nan for links that did not vote.
    outliers
        (m,), links that voted and were rejected.
    stage_only
        Indices of tiles that no reliable link holds: placed by the stage.
    """

    positions_px: NDArray[np.float64]
    residuals_px: NDArray[np.float64]
    outliers: NDArray[np.bool_]
    stage_only: tuple[int, ...]


def place_tiles(acquisition: Acquisition, links: Sequence[Link], settings: AlignSettings) -> Placement:
    """Place all tiles of an acquisition.

    Parameters
    ----------
    acquisition
        Gives the nominal positions and who neighbours whom.
    links
        From `measure_links`. Those that are empty or below ``settings.minimum_correlation`` don't vote.
    settings
        Weight of the stage, and the smallest correlation that counts.
    """
    nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles]).reshape(-1, 3)
    pairs = np.array(neighbours(acquisition.tiles), dtype=int).reshape(-1, 2)
    votes = np.array([not k.is_empty and k.correlation >= settings.minimum_correlation for k in links], dtype=bool)
    ends = np.array([(k.first, k.second) for k in links], dtype=int).reshape(-1, 2)
    shifts = np.array([k.shift_px for k in links]).reshape(-1, 3)
    weights = np.array([k.weight for k in links]).reshape(-1, 3) * votes[:, None]

    steps, model = _stage(nominal, pairs, ends[votes], shifts[votes])
    system = _System(len(nominal), ends, shifts, weights, pairs, steps, model, settings.stage_weight)
    robust, outliers = _reject(system, votes)
    positions = system.solve(robust)

    residuals = np.where(votes[:, None], system.residuals(positions), np.nan)
    held = set(ends[votes & ~outliers].ravel().tolist())
    return Placement(positions, residuals, outliers, tuple(i for i in range(len(nominal)) if i not in held))


@dataclass(frozen=True)
class _System:
    tiles: int
    ends: Array
    shifts: Array
    weights: Array
    pairs: Array
    steps: Array
    model: Array
    stage_weight: float

    def solve(self, robust: Array) -> Array:
        """Return the positions (n, 3) for given robust weights of the links."""
        rows = np.concatenate([self.ends, self.pairs])
        differences = np.concatenate([self.shifts, self.steps])
        incidence = _incidence(rows, self.tiles)
        positions = np.empty((self.tiles, 3))
        for axis in range(3):
            weights = np.concatenate([self.weights[:, axis] * robust, np.full(len(self.pairs), self.stage_weight)])
            scaled = incidence.T.multiply(weights).tocsr()
            anchor = self.stage_weight * _ABSOLUTE
            matrix = scaled @ incidence + anchor * sparse.identity(self.tiles)
            right = scaled @ differences[:, axis] + anchor * self.model[:, axis]
            positions[:, axis] = spsolve(matrix.tocsc(), right)
        return positions

    def residuals(self, positions: Array) -> Array:
        """Return what each link measured minus the distance of its tiles, (m, 3)."""
        return np.asarray(self.shifts - (positions[self.ends[:, 1]] - positions[self.ends[:, 0]]))


def _incidence(ends: Array, tiles: int) -> sparse.csr_array:
    """Matrix that takes positions to the differences second minus first."""
    rows = np.repeat(np.arange(len(ends)), 2)
    return sparse.csr_array((np.tile([-1.0, 1.0], len(ends)), (rows, ends.ravel())), shape=(len(ends), tiles))


def _stage(nominal: Array, pairs: Array, ends: Array, shifts: Array) -> tuple[Array, Array]:
    """Return how far apart neighbours (p, 3) and where tiles (n, 3) are by a stage of the links' median deviation."""
    deviation = shifts - (nominal[ends[:, 1]] - nominal[ends[:, 0]])
    correction = np.zeros((2, 3))
    for direction in (0, 1):
        along = deviation[_direction(nominal, ends) == direction]
        if len(along) >= _FEWEST_FOR_STAGE:
            correction[direction] = np.median(along, axis=0)
    steps = nominal[pairs[:, 1]] - nominal[pairs[:, 0]] + correction[_direction(nominal, pairs)]
    pitch = np.array([_pitch(nominal, pairs, direction) for direction in (0, 1)])
    cells = nominal[:, 1:] / pitch
    moved = cells @ correction
    model = nominal + moved - moved.mean(axis=0)
    return steps, model


def _direction(nominal: Array, pairs: Array) -> Array:
    """Return 0 for pairs along y (south) and 1 for pairs along x (east)."""
    step = np.abs(nominal[pairs[:, 1]] - nominal[pairs[:, 0]])
    return np.asarray(step[:, 2] > step[:, 1], dtype=int)


def _pitch(nominal: Array, pairs: Array, direction: int) -> float:
    """Nominal distance of neighbours in a direction; 1 where there are none (then nothing is measured either)."""
    steps = (nominal[pairs[:, 1]] - nominal[pairs[:, 0]])[_direction(nominal, pairs) == direction]
    return float(np.median(steps[:, 1 + direction])) if len(steps) else 1.0


def _reject(system: _System, votes: Array) -> tuple[Array, Array]:
    """Return the robust weight of each link, and which links are outliers."""
    if not votes.any():
        return np.zeros(len(votes)), np.zeros_like(votes)
    trust = _plausibility(system, votes)
    scale = max(float(np.linalg.norm(system.residuals(system.solve(trust))[votes], axis=1).max()), _ROBUST_PX)
    robust = trust
    settled = 0
    while settled < 5:
        squared = (system.residuals(system.solve(robust)) ** 2).sum(axis=1)
        robust = trust * (scale**2 / (scale**2 + squared)) ** 2
        settled += scale == _ROBUST_PX
        scale = max(scale * _SCALE_STEP, _ROBUST_PX)
    distance = np.linalg.norm(system.residuals(system.solve(robust)), axis=1)
    deviation = 1.4826 * float(np.median(distance[votes]))
    outliers = votes & (distance > max(_OUTLIER_PX, 4 * deviation))
    # What remains is least squares again, but for the few between a pixel and the limit.
    kept = (_ROBUST_PX**2 / (_ROBUST_PX**2 + distance**2)) ** 2
    return np.where(votes & ~outliers, kept, 0.0), outliers


def _plausibility(system: _System, votes: Array) -> Array:
    """How likely a link is by the stage alone, 0..1: settles which link of a single broken loop is wrong."""
    positions = system.model
    distance = np.linalg.norm(system.residuals(positions), axis=1)
    typical = max(3 * float(np.median(distance[votes])), 2.0)
    return np.where(votes, 1 / (1 + (distance / typical) ** 2), 0.0)
