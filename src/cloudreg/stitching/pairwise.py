"""The shift between two overlapping strips, measured to a fraction of a pixel.

1. Both strips are halved into a pyramid until they are small.
2. The coarsest level looks at the whole search window with FFTs. A peak that chance would give as well means that the
   overlap is empty: no shift.
3. Level by level, the peak is followed on the pieces that hold most of the common texture.
4. At full resolution a quadratic surface through the peak gives the fraction of a pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Box, split
from cloudreg.stitching.correlation import WINDOW, bandpass, correlation_map, correlations_at, quadratic_peak

Array = NDArray[Any]

# The coarsest level is at most this large, and no axis is halved below this many samples.
_COARSE_VOXELS = 1 << 18
_SMALLEST_AXIS = 24
# At finer levels this many voxels vote, in pieces of this side.
_VOTING_VOXELS = 400_000
_PIECE = 48
_CONTEXT = 16
# How far, in pixels of a level, the peak may lie from where the coarser level saw it.
_REACH = 5


@dataclass(frozen=True)
class Strip:
    """Part of a tile that may overlap its neighbour.

    Parameters
    ----------
    values
        (z, y, x), any number type.
    observed
        (z,), False for lost planes.
    """

    values: Array
    observed: NDArray[np.bool_]


@dataclass(frozen=True)
class Shift:
    """Where one strip lies in the other.

    Parameters
    ----------
    lag_px
        (3,), position of the second strip's first voxel in the first strip.
    correlation
        Height of the peak, 0..1.
    sharpness
        (3,), curvature over height of the peak per axis, 1/px^2.
    """

    lag_px: Array
    correlation: float
    sharpness: Array


def measure_shift(
    first: Strip, second: Strip, nominal_px: Sequence[int], search_px: Sequence[int], voxel_size_um: Sequence[float]
) -> Shift | None:
    """Measure where the second strip lies in the first.

    Parameters
    ----------
    first, second
        The strips.
    nominal_px
        Expected lag, z y x.
    search_px
        Largest deviation from it, z y x.
    voxel_size_um
        z y x; decides which axes are halved first.

    Returns
    -------
    Shift or None
        None if the strips have no significant texture in common.
    """
    levels = _pyramid(first, second, search_px, voxel_size_um)
    top = levels[-1]
    low, high = top.window(nominal_px, search_px)
    a, b = bandpass(top.first.values), bandpass(top.second.values)
    found = correlation_map(a, b, _voxel_mask(top.first), _voxel_mask(top.second), low, high).peak()
    if found is None:
        return None
    texture = _common_texture(a, b, found)

    lag = np.asarray(found, dtype=np.float64)
    shift = None
    for level, coarser in zip(levels[::-1], [top, *levels[:0:-1]], strict=True):
        start = np.rint(lag * coarser.factors / level.factors).astype(int)
        shift = _follow(level, start, texture, top.factors / level.factors)
        if shift is None:
            return None
        lag = shift.lag_px
    return shift


@dataclass(frozen=True)
class _Level:
    first: Strip
    second: Strip
    factors: Array

    def window(self, nominal_px: Sequence[int], search_px: Sequence[int]) -> tuple[list[int], list[int]]:
        """First and last lag of the search on this level, such that some voxels always overlap."""
        low, high = [], []
        for n, r, f, n1, n2 in zip(
            nominal_px, search_px, self.factors, self.first.values.shape, self.second.values.shape, strict=True
        ):
            low.append(max(int(np.floor((n - r) / f)), 1 - n2))
            high.append(max(low[-1], min(int(np.ceil((n + r) / f)), n1 - 1)))
        return low, high


def _pyramid(first: Strip, second: Strip, search_px: Sequence[int], voxel_size_um: Sequence[float]) -> list[_Level]:
    """Halve both strips, finest axes first, until the coarse search is cheap."""
    levels = [_Level(first, second, np.ones(3))]
    while True:
        last = levels[-1]
        shape = np.minimum(last.first.values.shape, last.second.values.shape)
        spacing = np.asarray(voxel_size_um) * last.factors
        may = shape >= 2 * _SMALLEST_AXIS
        if shape.prod() <= _COARSE_VOXELS or not may.any():
            return levels
        steps = np.where(may & (spacing < 1.5 * spacing[may].min()), 2, 1)
        levels.append(_Level(_halved(last.first, steps), _halved(last.second, steps), last.factors * steps))


def _halved(strip: Strip, steps: Array) -> Strip:
    """Average blocks of ``steps`` voxels (1 or 2 per axis), lost planes left out; odd last voxels are dropped."""
    z, y, x = (int(s) for s in steps)
    nz, ny, nx = (n // s for n, s in zip(strip.values.shape, steps, strict=True))
    total = np.zeros((nz, ny, nx), dtype=np.float32)
    count = np.zeros(nz, dtype=np.float32)
    for i in range(z):
        seen = strip.observed[i : nz * z : z]
        count += seen
        for j, k in itertools.product(range(y), range(x)):
            total += strip.values[i : nz * z : z, j : ny * y : y, k : nx * x : x]
    total /= np.maximum(count, 1)[:, None, None] * (y * x)
    return Strip(total, count > 0)


def _voxel_mask(strip: Strip) -> Array:
    return np.broadcast_to(strip.observed[:, None, None], strip.values.shape)


def _common_texture(first: Array, second: Array, lag: Sequence[int]) -> Array:
    """Product of both at a lag, on the second's voxels; zero where the first has none."""
    result = np.zeros(second.shape, dtype=np.float32)
    inside = Box.whole(first.shape).shifted([-v for v in lag]).intersection(Box.whole(second.shape))
    result[inside.slices] = first[inside.shifted(lag).slices] * second[inside.slices]
    return result


def _follow(level: _Level, start: Array, texture: Array, texture_factors: Array) -> Shift | None:
    """Climb the correlation from a lag to its peak; None if that is farther than the reach."""
    pieces = _pieces(level, start, texture, texture_factors)
    known: dict[tuple[int, ...], float] = {}

    def look(lags: Array) -> Array:
        new = [lag for lag in map(tuple, lags.tolist()) if lag not in known]
        known.update(zip(new, correlations_at(pieces, np.array(new, dtype=int).reshape(-1, 3)).tolist(), strict=True))
        return np.array([known[tuple(lag)] for lag in lags.tolist()])

    wide = _neighbours(2)
    peak = wide[np.argmax(look(wide))]
    while True:
        around = peak + _neighbours(1)
        values = look(around)
        best = around[np.argmax(values)]
        if (best == peak).all():
            break
        peak = best
        if (np.abs(peak) >= _REACH).any():
            return None
    offset, sharpness, height = quadratic_peak(values.reshape(3, 3, 3))
    if height <= 0:
        return None
    return Shift(start + peak + offset, height, sharpness)


def _pieces(
    level: _Level, start: Array, texture: Array, texture_factors: Array
) -> list[tuple[Array, Array, Array, Array, tuple[int, int, int]]]:
    """Filtered pieces of both strips around the expected overlap: those with most texture in common."""
    first, second = level.first, level.second
    overlap = Box.whole(first.values.shape).shifted((-start).tolist()).intersection(Box.whole(second.values.shape))
    # At the edges of the tiles the filter sees one side only, and not the same one in both.
    inset = [0, *(min(WINDOW // 2, n // 6) for n in overlap.shape[1:])]
    overlap = Box(_triple(np.add(overlap.start, inset).tolist()), _triple(np.subtract(overlap.stop, inset).tolist()))
    block = (overlap.shape[0], _PIECE, _PIECE) if overlap.size > _VOTING_VOXELS else overlap.shape
    boxes = [box.shifted(overlap.start) for box in split(overlap.shape, block)]

    def weight(box: Box) -> float:
        low = np.floor(np.asarray(box.start) / texture_factors).astype(int)
        high = np.ceil(np.asarray(box.stop) / texture_factors).astype(int)
        return -float(texture[tuple(slice(i, j) for i, j in zip(low, high, strict=True))].sum())

    chosen = sorted(boxes, key=weight)[: max(1, _VOTING_VOXELS // max(1, boxes[0].size))]
    result = []
    for box in chosen:
        # The first piece is larger, so that the second stays inside it at every lag that may be looked at.
        reach = box.shifted(start.tolist()).grown((_REACH + 1,) * 3, first.values.shape)
        lag = [int(b + s - r) for b, s, r in zip(box.start, start, reach.start, strict=True)]
        result.append(
            (
                _filtered(first.values, reach),
                _filtered(second.values, box),
                first.observed[reach.start[0] : reach.stop[0]],
                second.observed[box.start[0] : box.stop[0]],
                _triple(lag),
            )
        )
    return result


def _filtered(values: Array, box: Box) -> Array:
    """Band-pass a box, with enough around it that its edges don't show."""
    wide = box.grown((0, _CONTEXT, _CONTEXT), values.shape)
    inner = box.shifted([-s for s in wide.start])
    return np.ascontiguousarray(bandpass(values[wide.slices])[inner.slices])


def _neighbours(radius: int) -> Array:
    """All whole lags within a cube, (n, 3), in z, y, x order."""
    axis = range(-radius, radius + 1)
    return np.array(list(itertools.product(axis, axis, axis)))


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(v) for v in values)
    return z, y, x
