"""What the overlaps of the tiles say about the flat field.

Where two tiles overlap, one piece of tissue is seen twice, at opposite borders of the camera. The ratio of the two
pictures is the ratio of the flat field at two places, whatever the tissue: it measures how the light falls off, where
a mean over few tiles also measures the brain. Flat fields from displaced pictures of the same scene are due to Kuhn,
Lin and Loranz 1991 (doi:10.1086/132932).

The stage errs by some pixels, and tissue compared with its surroundings is a wrong ratio: the two pictures are first
moved so that the ratio is as even as it can be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.tiles import Acquisition

# A block must be seen in this part of the depths, so that its median is not one vessel.
_LEAST_PLANES = 0.2
# The stage's error that is looked for, as a fraction of the tile's longer side.
_STAGE_ERROR = 0.05
# Fewer values than this say nothing about where the tiles lie.
_FEWEST_VALUES = 64
_COARSE_DEPTHS = 4
_SEARCHED_DEPTHS = 16
_NEAR = 2
PARTS = 4
"""Into how many parts an overlap is cut along its length."""


@dataclass(frozen=True)
class Overlaps:
    """Equations ``design @ coefficients = ratio``, one for each block of each overlap.

    Parameters
    ----------
    design
        (equations, functions): differences of the basis functions between the two places.
    ratio
        (equations,): logarithm of the ratio of the two pictures, the median over the depths.
    pair
        (equations,): which pair of tiles, ascending. Tiles differ in exposure: all ratios of a pair, by one factor.
    part
        (equations,): which part of which overlap, along its length; equations of one part err together.
    """

    design: NDArray[np.float64]
    ratio: NDArray[np.float64]
    pair: NDArray[np.intp]
    part: NDArray[np.intp]


def compare_overlaps(
    acquisition: Acquisition,
    light: NDArray[np.float32],
    basis: NDArray[np.float64],
    block_px: int,
    threshold: float,
) -> Overlaps:
    """Compare each tile with its right and its lower neighbour, where they overlap.

    Parameters
    ----------
    acquisition
        Says which tiles are neighbours.
    light
        (tiles, depths, rows, columns), brightness above the background, of blocks of ``block_px`` pixels.
    basis
        (functions, rows, columns).
    block_px
        Side of a block.
    threshold
        Blocks count where the geometric mean of both pictures is brighter. It favours neither picture, so that the
        choice does not shift their ratio.
    """
    # Whole blocks only: those that the tile's edge cuts are not where a lattice would have them.
    rows, columns = (n // block_px for n in acquisition.tile_shape[1:])
    log = np.log(np.maximum(light[..., :rows, :columns], np.float32(1e-6)))
    functions = basis[:, :rows, :columns]
    reach = max(1, round(_STAGE_ERROR * max(rows, columns)))
    designs, ratios, pairs = [np.empty((0, len(basis)))], [np.empty(0)], [np.empty(0, np.intp)]
    parts = [np.empty(0, np.intp)]
    for number, (first, second, axis) in enumerate(_neighbours(acquisition)):
        step = [0.0, 0.0]
        step[axis] = acquisition.pitch_px[axis] / block_px
        found = _Shifted.best(log[first], log[second], step, reach, 2 * math.log(threshold))
        if found is None:
            continue
        difference, seen = found.compare(log[first], log[second], 2 * math.log(threshold))
        usable = seen.sum(axis=0) >= max(1, _LEAST_PLANES * len(seen))
        if not usable.any():
            continue
        difference = np.where(seen, difference, np.nan)
        design = found.of_first(functions) - found.of_second(functions)
        ratios.append(np.nanmedian(difference[:, usable], axis=0))
        designs.append(design[:, usable].T)
        pairs.append(np.full(int(usable.sum()), number))
        along = np.nonzero(usable)[1 - axis]
        parts.append(number * PARTS + along * PARTS // usable.shape[1 - axis])
    return Overlaps(np.concatenate(designs), np.concatenate(ratios), np.concatenate(pairs), np.concatenate(parts))


@dataclass(frozen=True)
class _Shifted:
    """Two tiles of blocks, the second's first block at ``step`` in the first's; it is interpolated onto the first."""

    step: tuple[float, float]
    shape: tuple[int, int]

    @staticmethod
    def best(
        first: NDArray[np.float32], second: NDArray[np.float32], step: list[float], reach: int, threshold: float
    ) -> _Shifted | None:
        """Return the shift near the stage's at which the pictures differ by the least varying ratio.

        The ratio of the fields varies too, but slowly: its slope along both axes is left out of the variation.
        """
        shape = first.shape[-2], first.shape[-1]
        side = 2 * reach + 1

        def look(score: NDArray[np.float64], depths: int, lags: Iterable[tuple[int, ...]]) -> tuple[int, int]:
            """Fill in the variation at some lags, from some of the depths, and return the best lag of all."""
            few = slice(None, None, -(-len(first) // depths))
            for i, j in lags:
                if np.isnan(score[i, j]):
                    tried = _Shifted((step[0] + i - reach, step[1] + j - reach), shape)
                    difference, seen = tried.compare(first[few], second[few], threshold)
                    count = int(np.count_nonzero(seen))
                    score[i, j] = _variation(difference, seen, count) if count >= _FEWEST_VALUES else np.inf
            return divmod(int(np.where(np.isnan(score), np.inf, score).argmin()), side)

        # A few depths say about where the tile lies, some more of them where exactly.
        everywhere = list(itertools.product(range(side), repeat=2))
        coarse, score = np.full((2, side, side), np.nan)
        best, before = look(coarse, _COARSE_DEPTHS, everywhere), None
        if not np.isfinite(coarse[best]):
            best = before = look(score, _SEARCHED_DEPTHS, everywhere)
        while best != before:
            before = best
            near = (range(max(0, k - _NEAR), min(side, k + _NEAR + 1)) for k in best)
            best = look(score, _SEARCHED_DEPTHS, itertools.product(*near))
        i, j = best
        if not np.isfinite(score[i, j]):
            return None
        return _Shifted(
            (step[0] + i - reach + _vertex(score[:, j], i), step[1] + j - reach + _vertex(score[i], j)), shape
        )

    def of_first(self, blocks: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the part of the first's blocks (n, rows, columns) that the second covers."""
        rows, columns = (self._along(axis)[0] for axis in (0, 1))
        if not len(rows) or not len(columns):
            return blocks[:, :0, :0]
        return blocks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def of_second(self, blocks: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the second's blocks at the places of `of_first`, linear between blocks."""
        result = blocks
        for axis in (0, 1):
            _, below, part = self._along(axis)
            if not len(below):
                return blocks[:, :0, :0]
            share = part if axis else part[:, None]
            result = result.take(below, 1 + axis) * (1 - share) + result.take(below + 1, 1 + axis) * share
        return np.asarray(result)

    def compare(
        self, first: NDArray[np.float32], second: NDArray[np.float32], threshold: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return first minus second, and where both are bright enough together."""
        (rows, above, v), (columns, left, u) = self._along(0), self._along(1)
        shape = len(first), len(rows), len(columns)
        difference, seen = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        if difference.size:
            _compare(first, second, rows[0], columns[0], above, left, v, u, np.float32(threshold), difference, seen)
        return difference, seen

    def _along(self, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """Blocks of the first, the lower of the two blocks of the second at each, and the weight of the upper."""
        step, length = self.step[axis], self.shape[axis]
        here = np.arange(max(0, math.ceil(step)), min(length, length + math.floor(step)))
        there = np.floor(here - step).astype(np.intp)
        inside = (there >= 0) & (there + 1 < length)
        here, there = here[inside], there[inside]
        return here, there, (here - step - there).astype(np.float32)


@njit(cache=True, nogil=True)
def _compare(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    row: int,
    column: int,
    above: NDArray[np.intp],
    left: NDArray[np.intp],
    v: NDArray[np.float32],
    u: NDArray[np.float32],
    threshold: float,
    difference: NDArray[np.float32],
    seen: NDArray[np.bool_],
) -> None:
    """Subtract the second, linear between its blocks (``above`` and ``left`` of a place by ``v`` and ``u``)."""
    one = np.float32(1)
    # Black blocks are far below any tissue.
    black = threshold / np.float32(2) - np.float32(3)
    for z in range(difference.shape[0]):
        for y in range(difference.shape[1]):
            upper, lower = second[z, above[y]], second[z, above[y] + 1]
            for x in range(difference.shape[2]):
                k = left[x]
                one_side = upper[k] * (one - v[y]) + lower[k] * v[y]
                other = upper[k + 1] * (one - v[y]) + lower[k + 1] * v[y]
                there = one_side * (one - u[x]) + other * u[x]
                here = first[z, row + y, column + x]
                difference[z, y, x] = here - there
                seen[z, y, x] = here + there > threshold and min(here, there) > black


def _variation(difference: NDArray[np.float32], seen: NDArray[np.bool_], count: int) -> float:
    """Median size of what is left of the seen differences without a plane over the overlap."""
    mean, weight = _mean_of_seen(difference, seen)
    y, x = (axis.ravel() for axis in np.mgrid[: mean.shape[0], : mean.shape[1]].astype(float))
    design = np.stack([np.ones_like(y), y, x], axis=1)
    scaled = design * weight.ravel()[:, None]
    plane = design @ np.linalg.lstsq(scaled.T @ design, scaled.T @ mean.ravel(), rcond=None)[0]
    sizes = np.empty(count)
    _sizes_of_rest(difference, seen, plane.reshape(mean.shape), sizes)
    return float(np.median(sizes))


@njit(cache=True, nogil=True)
def _mean_of_seen(
    difference: NDArray[np.float32], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean over the depths, 0 where nothing was seen, and at how many it was."""
    depths, rows, columns = difference.shape
    mean, weight = np.zeros((rows, columns)), np.zeros((rows, columns))
    for z in range(depths):
        for y in range(rows):
            for x in range(columns):
                if seen[z, y, x]:
                    mean[y, x] += difference[z, y, x]
                    weight[y, x] += 1
    return mean / np.maximum(weight, 1), weight


@njit(cache=True, nogil=True)
def _sizes_of_rest(
    difference: NDArray[np.float32], seen: NDArray[np.bool_], plane: NDArray[np.float64], sizes: NDArray[np.float64]
) -> None:
    count = 0
    for z in range(difference.shape[0]):
        for y in range(difference.shape[1]):
            for x in range(difference.shape[2]):
                if seen[z, y, x]:
                    sizes[count] = abs(difference[z, y, x] - plane[y, x])
                    count += 1


def _vertex(values: NDArray[np.float64], at: int) -> float:
    """Where the parabola through the least value and its neighbours has its vertex, from that value."""
    if not 0 < at < len(values) - 1 or not np.isfinite(values[at - 1 : at + 2]).all():
        return 0.0
    left, middle, right = values[at - 1 : at + 2]
    curvature = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)) if curvature > 0 else 0.0


def _neighbours(acquisition: Acquisition) -> Iterator[tuple[int, int, int]]:
    """Yield indices of tile and neighbour, and the axis between them: 0 = vertical, 1 = horizontal."""
    index = {(tile.row, tile.column): i for i, tile in enumerate(acquisition.tiles)}
    for (row, column), i in index.items():
        for axis, place in enumerate(((row + 1, column), (row, column + 1))):
            if place in index:
                yield i, index[place], axis
