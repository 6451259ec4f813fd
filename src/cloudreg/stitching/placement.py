"""Where all tiles lie: weighted least squares over all reliable links, and the stage where there are none.

The positions x, all three axes together, minimise

    sum over links  r e^T I e,  with  e = x_second - x_first - shift
  + sum over neighbours  s |d_second - d_first|^2  +  sum over tiles  a |d|^2,  with  d = x - model

with I the link's information and r its robust weight. Where an overlap shows an edge only, the shift along the edge
isn't known: I says so, and other links or the stage decide that direction alone. ``model`` is the stage as it really
moved, and s and a how well it did along each axis: all are learned from the tiles that the images hold, see
`cloudreg.stitching.stage`. So no part of the grid can drift away.

A wrong link breaks the loops that it is in, and robust weights find it, see `cloudreg.stitching.robust`.

The matrix of these equations is the inverse covariance of the positions. So it is known of each tile how far it may be
off, and how much of that the stage decides alone, see `cloudreg.stitching.certainty`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from cloudreg.settings import AlignSettings
from cloudreg.stitching.certainty import find_certainties
from cloudreg.stitching.layers import FLOOR_PX
from cloudreg.stitching.links import Link, neighbours, search_radius_px
from cloudreg.stitching.robust import distances_px, reject
from cloudreg.stitching.stage import Stage, learned_stage, robust_model
from cloudreg.tiles import Acquisition, Certainty

Array = NDArray[Any]

ABSOLUTE = 0.01
"""Weight of the stage's absolute positions beside its distances, where nothing is known of how well it did."""
# Tiles hang together by links that are known this well in all directions, as standard deviations in pixels.
_HELD_PX = 0.5


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
    certainties
        How well each tile's place is known, relative to the largest group of tiles that hang together.
    """

    positions_px: NDArray[np.float64]
    residuals_px: NDArray[np.float64]
    outliers: NDArray[np.bool_]
    stage_only: tuple[int, ...]
    certainties: tuple[Certainty, ...]


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

    weight = settings.stage_weight / FLOOR_PX**2 * np.ones(3)
    none = np.zeros((*nominal.shape, 0))
    first = Stage(robust_model(nominal, pairs, ends[votes], shifts[votes]), ABSOLUTE * weight, weight, none)
    system = _System(ends, shifts, information, pairs, first)
    robust, outliers = reject(system, votes)
    positions = system.solve(robust)
    group = _hanging_together(len(nominal), ends, information, robust)
    learned = learned_stage(nominal, pairs, positions, group)
    if learned is None:
        # The largest deviation that was looked for is all that is known of the stage.
        radius = np.asarray(search_radius_px(acquisition, settings), dtype=np.float64)
        judged = Stage(first.model, (2 / np.maximum(radius, 1.0)) ** 2, np.zeros(3), none)
    else:
        judged = learned
        system = replace(system, stage=learned)
        positions = system.solve(robust)

    residuals = np.where(votes[:, None], system.residuals(positions), np.nan)
    held = set(ends[votes & ~outliers].ravel().tolist())
    return Placement(
        positions,
        residuals,
        outliers,
        tuple(i for i in range(len(nominal)) if i not in held),
        find_certainties(
            system.of_links(robust),
            replace(system, stage=judged).of_stage(),
            judged.steps.reshape(nominal.size, -1),
            group,
        ),
    )


@dataclass(frozen=True)
class _System:
    ends: Array
    shifts: Array
    information: Array
    pairs: Array
    stage: Stage

    @property
    def expected(self) -> Array:
        """Where tiles are by the stage alone, (n, 3)."""
        return self.stage.model

    def solve(self, robust: Array) -> Array:
        """Return the positions (n, 3) for given robust weights of the links."""
        stage = self.of_stage()
        right = (stage @ self.stage.model.ravel()).reshape(-1, 3)
        pulls = robust[:, None] * np.einsum("kij,kj->ki", self.information, self.shifts)
        np.add.at(right, self.ends[:, 1], pulls)
        np.add.at(right, self.ends[:, 0], -pulls)
        return np.asarray(spsolve((self.of_links(robust) + stage).tocsc(), right.ravel())).reshape(-1, 3)

    def of_links(self, robust: Array) -> Any:
        """Return what the links know, as a matrix (3n, 3n)."""
        return self._assembled(self.ends, robust[:, None, None] * self.information)

    def of_stage(self) -> Any:
        """Return what the stage knows, as a matrix (3n, 3n)."""
        together = np.broadcast_to(np.diag(self.stage.together), (len(self.pairs), 3, 3))
        own = sparse.diags_array(np.tile(self.stage.own, len(self.stage.model)))
        return self._assembled(self.pairs, together) + own

    def _assembled(self, ends: Array, information: Array) -> Any:
        """Return the matrix (3n, 3n) whose quadratic form is the sum of those of all differences of tiles."""
        first, second = 3 * ends[:, 0, None] + np.arange(3), 3 * ends[:, 1, None] + np.arange(3)
        blocks = ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1))
        rows = np.concatenate([np.repeat(a, 3, axis=1).ravel() for a, _, _ in blocks])
        columns = np.concatenate([np.tile(b, (1, 3)).ravel() for _, b, _ in blocks])
        values = np.concatenate([sign * information.ravel() for _, _, sign in blocks])
        side = self.stage.model.size
        return sparse.csr_array((values, (rows, columns)), shape=(side, side))

    def residuals(self, positions: Array) -> Array:
        """Return what each link measured minus the distance of its tiles, (m, 3)."""
        return np.asarray(self.shifts - (positions[self.ends[:, 1]] - positions[self.ends[:, 0]]))

    def distances(self, positions: Array) -> Array:
        """Return how far off each link is, (m,), see `distances_px`."""
        return distances_px(self.residuals(positions), self.information)


def _hanging_together(tiles: int, ends: Array, information: Array, robust: Array) -> Array:
    """Return the indices of the largest group of tiles that links known in all directions hold together."""
    least = np.linalg.eigvalsh(information)[:, 0] * robust if len(ends) else np.zeros(0)
    known = ends[least >= 1 / _HELD_PX**2]
    graph = sparse.csr_array((np.ones(len(known)), known.T), shape=(tiles, tiles))
    label = connected_components(graph, directed=False)[1]
    return np.flatnonzero(label == np.bincount(label).argmax())
