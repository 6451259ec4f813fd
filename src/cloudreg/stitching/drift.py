"""How tiles drift sideways over their depth: the stage, the specimen or the light may move while a tile is scanned.

A tile's row and column are then functions of the plane, linear between a few nodes. All rows and columns u at the
nodes, and one depth for each tile, minimise

    sum over layers of links  r e^T I e,  with  e = position of the second - position of the first - shift there
  + sum over tiles  |second differences of u|^2 / sigma^2  +  |third differences of u|^2 / tau^2
  + a slight pull of the means of u to the stage, and of the first differences of u to none

with I what a layer knows of its shift and r its robust weight, see `cloudreg.stitching.robust`. Empty layers have no
say: far from what is measured, a drift goes on straight. The pulls decide only what no link does.

What all tiles that hang together drift together, no overlap shows: it would shear all that they saw. It is taken off
them, and so is the mean of each tile's drift over the depth. Then the drift is taken off the layers. What is left of a
link is one shift, and tiles are placed by these as those that don't drift, see `cloudreg.stitching.placement`.
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
from cloudreg.stitching.layers import FLOOR_PX
from cloudreg.stitching.links import Layer, Link, combined, drift_layers, is_trusted, neighbours
from cloudreg.stitching.placement import ABSOLUTE
from cloudreg.stitching.robust import distances_px, reject
from cloudreg.stitching.stage import robust_model
from cloudreg.tiles import Acquisition, Drift

Array = NDArray[Any]

# By how much the drift from node to node may change at a node, as a standard deviation in pixels.
_BEND_PX = 1.0
# The same of the change of that from node to node: a drift bends slowly, also before the first layer's middle.
_CHANGE_PX = 0.3
# Digits of a drift that are kept, in pixels.
_DIGITS = 4


@dataclass(frozen=True)
class LayerResidual:
    """How well one layer of all links fits.

    Parameters
    ----------
    plane
        The layer's middle, in planes of a tile.
    links
        How many voted there.
    px, straight_px
        Median of what they measured minus what became of it; and of what would be left if no tile drifted. nan where
        no link voted.
    """

    plane: float
    links: int
    px: float
    straight_px: float


@dataclass(frozen=True)
class Drifts:
    """How all tiles drift.

    Parameters
    ----------
    tiles
        In the acquisition's order; over the depth each is none in the mean.
    layers
        What is left of the measurements.
    """

    tiles: tuple[Drift, ...]
    layers: tuple[LayerResidual, ...]


def find_drifts(acquisition: Acquisition, links: Sequence[Link], settings: AlignSettings) -> Drifts | None:
    """Find how tiles drift.

    Parameters
    ----------
    acquisition
        Gives the nominal positions and who neighbours whom.
    links
        From `measure_links`, with their layers. Layers below ``settings.minimum_correlation`` don't vote.
    settings
        Weight of the stage, and the smallest correlation that counts.

    Returns
    -------
    Drifts or None
        None if tiles are too thin for two layers, or no layer votes.
    """
    count = drift_layers(acquisition, settings)
    measured = [
        (link, layer)
        for link in links
        for layer in link.layers
        if layer.shift.correlation >= settings.minimum_correlation and is_trusted(layer.shift.information)
    ]
    if not count or not measured:
        return None
    depth = acquisition.tile_shape[0]
    nodes = np.linspace(0, depth - 1, count)
    system = _System.of(acquisition, measured, nodes, settings)
    robust, outliers = reject(system, np.ones(len(measured), dtype=bool))
    offsets = system.sideways(system.solve(robust))
    offsets -= (_mean_weights(count) @ offsets)[:, None]
    ends = np.array([(link.first, link.second) for link, _ in measured])[robust > 0]
    graph = sparse.csr_array((np.ones(len(ends)), ends.T), shape=(len(offsets), len(offsets)))
    labels = connected_components(graph, directed=False)[1]
    for label in range(labels.max() + 1):
        offsets[labels == label] -= offsets[labels == label].mean(axis=0)
    offsets = np.round(offsets, _DIGITS)
    drifts = tuple(
        Drift(tuple(nodes.tolist()), tuple(along[:, 0].tolist()), tuple(along[:, 1].tolist())) for along in offsets
    )
    kept = [pair for pair, out in zip(measured, outliers, strict=True) if not out]
    return Drifts(drifts, _residuals(kept, drifts, depth, count))


def without_drift(links: Sequence[Link], drifts: Drifts) -> list[Link]:
    """Return the links as they would be if no tile drifted: what all layers have in common then."""
    return [combined(link, [_straightened(link, layer, drifts.tiles) for layer in link.layers]) for link in links]


def _straightened(link: Link, layer: Layer, drifts: Sequence[Drift]) -> Layer:
    """Take the drift of both tiles off what a layer measured."""
    first, second = _planes(layer)
    moved = drifts[link.second].at([second])[0] - drifts[link.first].at([first])[0]
    return replace(layer, shift=replace(layer.shift, lag_px=layer.shift.lag_px - [0.0, *moved]))


def _planes(layer: Layer) -> tuple[float, float]:
    """Return the middle of a layer in planes of the first tile and of the second."""
    return layer.plane, layer.plane - float(layer.shift.lag_px[0])


def _residuals(
    measured: Sequence[tuple[Link, Layer]], drifts: Sequence[Drift], depth: int, count: int
) -> tuple[LayerResidual, ...]:
    """Compare the layers of each link with what they have in common, as measured and without the drift."""
    apart: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for link in dict.fromkeys(id(link) for link, _ in measured):
        mine = [(one, layer) for one, layer in measured if id(one) == link]
        lags = np.array([layer.shift.lag_px for _, layer in mine])
        straight = np.array([_straightened(*pair, drifts).shift.lag_px for pair in mine])
        off = [np.linalg.norm(values - np.median(values, axis=0), axis=1) for values in (straight, lags)]
        for (_, layer), after, before in zip(mine, *off, strict=True):
            apart[min(int(layer.plane * count / depth), count - 1)].append((after, before))
    return tuple(
        LayerResidual(
            (2 * k + 1) * depth / (2 * count) - 0.5,
            len(found),
            *(np.median(found, axis=0).tolist() if found else (np.nan, np.nan)),
        )
        for k, found in enumerate(apart)
    )


def _mean_weights(count: int) -> Array:
    """Return the weights of the nodes in the mean over the depth."""
    weights = np.ones(count)
    weights[[0, -1]] = 0.5
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class _System:
    """Unknowns: the depths of all tiles, then their rows at all nodes, tile by tile, then their columns."""

    design: Any
    shifts: Array
    information: Array
    prior: Any
    expected: Array
    nodes: int

    @staticmethod
    def of(
        acquisition: Acquisition, measured: Sequence[tuple[Link, Layer]], nodes: Array, settings: AlignSettings
    ) -> _System:
        nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles]).reshape(-1, 3)
        pairs = np.array(neighbours(acquisition.tiles), dtype=int).reshape(-1, 2)
        ends = np.array([(link.first, link.second) for link, _ in measured])
        shifts = np.array([layer.shift.lag_px for _, layer in measured])
        known = np.array([layer.shift.covariance for _, layer in measured])
        model = robust_model(nominal, pairs, ends, shifts)
        tiles, count = len(nominal), len(nodes)

        # Matrices (measurements, tiles x nodes): how much a node counts for each end of a link; the same for depths.
        between = [np.interp([_planes(layer)[end] for _, layer in measured], nodes, np.arange(count)) for end in (0, 1)]
        sideways = _at(ends[:, 1], between[1], tiles, count) - _at(ends[:, 0], between[0], tiles, count)
        depths = _at(ends[:, 1], np.zeros(len(ends)), tiles, 1) - _at(ends[:, 0], np.zeros(len(ends)), tiles, 1)
        # Measurement by measurement, z y x.
        order = np.arange(3 * len(ends)).reshape(3, -1).T.ravel()
        design = sparse.block_diag([depths, sideways, sideways]).tocsr()[order]

        weight = ABSOLUTE * settings.stage_weight / FLOOR_PX**2
        apart = _at(pairs[:, 1], np.zeros(len(pairs)), tiles, 1) - _at(pairs[:, 0], np.zeros(len(pairs)), tiles, 1)
        stage = weight * (apart.T @ apart) + ABSOLUTE * weight * sparse.eye_array(tiles)
        mean = _mean_weights(count)
        steps, bends, changes = (np.diff(np.eye(count), order, axis=0) for order in (1, 2, 3))
        own = weight * steps.T @ steps + bends.T @ bends / _BEND_PX**2 + changes.T @ changes / _CHANGE_PX**2
        along = sparse.kron(stage, np.outer(mean, mean)) + sparse.kron(sparse.eye_array(tiles), own)
        return _System(
            design,
            shifts,
            np.linalg.inv(known + FLOOR_PX**2 * np.eye(3)),
            sparse.block_diag([stage, along, along]).tocsr(),
            np.concatenate([model[:, 0], np.repeat(model[:, 1], count), np.repeat(model[:, 2], count)]),
            count,
        )

    def solve(self, robust: Array) -> Array:
        """Return the unknowns for given robust weights of the layers."""
        count = len(self.shifts)
        blocks = robust[:, None, None] * self.information
        weights = sparse.bsr_array((blocks, np.arange(count), np.arange(count + 1)), shape=(3 * count, 3 * count))
        weighted = self.design.T @ weights
        right = weighted @ self.shifts.ravel() + self.prior @ self.expected
        return np.asarray(spsolve((weighted @ self.design + self.prior).tocsc(), right))

    def distances(self, unknowns: Array) -> Array:
        """Return how far off each layer is, (m,), see `distances_px`."""
        return distances_px(self.shifts - (self.design @ unknowns).reshape(-1, 3), self.information)

    def sideways(self, unknowns: Array) -> Array:
        """Return rows and columns of all tiles at the nodes, (n, nodes, 2)."""
        tiles = len(unknowns) // (2 * self.nodes + 1)
        return np.moveaxis(unknowns[tiles:].reshape(2, tiles, self.nodes), 0, -1)


def _at(tiles: Array, nodes: Array, count: int, per_tile: int) -> Any:
    """Return the matrix (m, count x per_tile) that takes the value of a tile between two of its nodes."""
    low = np.minimum(nodes.astype(int), max(per_tile - 2, 0))
    high = np.minimum(low + 1, per_tile - 1)
    share = nodes - low
    columns = np.concatenate([tiles * per_tile + low, tiles * per_tile + high])
    place = np.tile(np.arange(len(tiles)), 2), columns
    return sparse.csr_array((np.concatenate([1 - share, share]), place), shape=(len(tiles), count * per_tile))
