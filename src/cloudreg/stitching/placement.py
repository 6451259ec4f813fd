"""Where all tiles lie: weighted least squares over all reliable links, and the stage where there are none.

The positions x, all three axes together, minimise

    sum over links  r e^T I e,  with  e = x_second - x_first - shift
  + sum over neighbours  s |x_second - x_first - step|^2  +  sum over tiles  s/100 |x - model|^2

with I the link's information, r its robust weight, and s the stage's weight. Where an overlap shows an edge only, the
shift along the edge isn't known: I says so, and other links or the stage decide that direction alone. ``step`` and
``model`` are the stage as it really moved: the nominal positions, corrected by the median deviation of all east links
and of all south links. So a tile without links keeps its place beside its neighbours, and no part of the grid can drift
away.

A wrong link breaks the loops that it is in. Robust weights find it: r starts at 1 for all, and its scale is lowered
step by step (graduated non-convexity) until links off by more than about a pixel count for nothing. A link that isn't
known to a pixel may be off by more.

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
from cloudreg.stitching.layers import FLOOR_PX
from cloudreg.stitching.links import Link, neighbours
from cloudreg.tiles import Acquisition

Array = NDArray[Any]

# Residual at which a link that is perfectly known counts a quarter in the end.
_ROBUST_PX = 1.0
_SCALE_STEP = 0.7
# A link farther off than this many times that, and than four robust standard deviations, is an outlier.
_OUTLIER = 2.0
# The stage's absolute position only decides what nothing else does.
_ABSOLUTE = 0.01
# Information of a direction of which nothing is known, 1/px^2.
_NOTHING = 1e-6
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
    information = np.array([k.information for k in links]).reshape(-1, 3, 3)

    steps, model = _stage(nominal, pairs, ends[votes], shifts[votes])
    stage = settings.stage_weight / FLOOR_PX**2
    system = _System(len(nominal), ends, shifts, information, pairs, steps, model, stage)
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
    information: Array
    pairs: Array
    steps: Array
    model: Array
    stage: float

    def solve(self, robust: Array) -> Array:
        """Return the positions (n, 3) for given robust weights of the links."""
        used = robust > 0
        stage = np.broadcast_to(self.stage * np.eye(3), (len(self.pairs), 3, 3))
        information = np.concatenate([self.information[used] * robust[used, None, None], stage])
        ends = np.concatenate([self.ends[used], self.pairs])
        differences = np.concatenate([self.shifts[used], self.steps])
        anchor = self.stage * _ABSOLUTE

        right = anchor * self.model
        pulls = np.einsum("kij,kj->ki", information, differences)
        np.add.at(right, ends[:, 1], pulls)
        np.add.at(right, ends[:, 0], -pulls)
        matrix = self._assembled(ends, information) + anchor * sparse.identity(3 * self.tiles)
        return np.asarray(spsolve(matrix.tocsc(), right.ravel())).reshape(-1, 3)

    def _assembled(self, ends: Array, information: Array) -> Any:
        """Return the matrix (3n, 3n) whose quadratic form is the sum of those of all differences of tiles."""
        first, second = 3 * ends[:, 0, None] + np.arange(3), 3 * ends[:, 1, None] + np.arange(3)
        blocks = ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1))
        rows = np.concatenate([np.repeat(a, 3, axis=1).ravel() for a, _, _ in blocks])
        columns = np.concatenate([np.tile(b, (1, 3)).ravel() for _, b, _ in blocks])
        values = np.concatenate([sign * information.ravel() for _, _, sign in blocks])
        return sparse.csr_array((values, (rows, columns)), shape=(3 * self.tiles, 3 * self.tiles))

    def residuals(self, positions: Array) -> Array:
        """Return what each link measured minus the distance of its tiles, (m, 3)."""
        return np.asarray(self.shifts - (positions[self.ends[:, 1]] - positions[self.ends[:, 0]]))

    def distances(self, positions: Array) -> Array:
        """Return how far off each link is, (m,), in pixels for one that is perfectly known; less for a vague one."""
        off = self.residuals(positions)
        covariance = np.linalg.inv(self.information + _NOTHING * np.eye(3))
        squared = np.einsum("ki,ki->k", off, np.linalg.solve(covariance + np.eye(3), off[..., None])[..., 0])
        return np.asarray(np.sqrt(squared))


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
    scale = max(float(system.distances(system.solve(trust))[votes].max()), _ROBUST_PX)
    robust = trust
    settled = 0
    while settled < 5:
        squared = system.distances(system.solve(robust)) ** 2
        robust = trust * (scale**2 / (scale**2 + squared)) ** 2
        settled += scale == _ROBUST_PX
        scale = max(scale * _SCALE_STEP, _ROBUST_PX)
    distance = system.distances(system.solve(robust))
    deviation = 1.4826 * float(np.median(distance[votes]))
    outliers = votes & (distance > max(_OUTLIER * _ROBUST_PX, 4 * deviation))
    # What remains is least squares again, but for the few between a pixel and the limit.
    kept = (_ROBUST_PX**2 / (_ROBUST_PX**2 + distance**2)) ** 2
    return np.where(votes & ~outliers, kept, 0.0), outliers


def _plausibility(system: _System, votes: Array) -> Array:
    """How likely a link is by the stage alone, 0..1: settles which link of a single broken loop is wrong."""
    distance = system.distances(system.model)
    typical = max(3 * float(np.median(distance[votes])), 2.0)
    return np.where(votes, 1 / (1 + (distance / typical) ** 2), 0.0)
