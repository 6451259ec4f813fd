"""The shift between two overlapping strips, measured to a fraction of a pixel.

1. Both strips are halved into a pyramid until they are small.
2. The coarsest level looks at the whole search window with FFTs. A peak that chance would give as well means that the
   overlap is empty: no shift.
3. Level by level, the peak is followed on the pieces that hold most of the common texture; and so are its rivals,
   where several are nearly as high. If one is not clearly the best in the end, there is no shift either.
4. At full resolution a quadratic surface through the peak gives the fraction of a pixel.
5. How well the shift is known in each direction follows from the residuals there, block by block (the "sandwich" of
   robust statistics): so noise that is larger where it is bright, and texture that is in few places, are counted.

References
----------
P. J. Huber, "The behavior of maximum likelihood estimates under nonstandard conditions", Proc. 5th Berkeley Symp. 1
(1967).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Box, split
from cloudreg.stitching.correlation import WINDOW, bandpass, correlation_map, correlations_at, quadratic_peak

Array = NDArray[Any]
_Piece = tuple[Array, Array, Array, Array, tuple[int, int, int]]

# The coarsest level is at most this large, and no axis is halved below this many samples.
_COARSE_VOXELS = 1 << 18
_SMALLEST_AXIS = 24
# At finer levels this many voxels vote, in pieces of this side.
_VOTING_VOXELS = 400_000
_PIECE = 48
_CONTEXT = 16
# How far, in pixels of a level, the peak may lie from where the coarser level saw it.
_REACH = 5
# A peak may lie this far outside the search window, in pixels: what whole lags leave open.
_BEYOND_PX = 0.5
# A rival within this distance of the best, in pixels, is the same peak; one with more than this share of the inverse
# hyperbolic tangent of the best one's correlation makes it ambiguous.
_SAME_PX = 2.0
_CLEARLY = 0.85
# Shifts that differ by less than this, in pixels, or than so many standard deviations, mean the same.
_CLOSE_PX = 1.0
_MANY_SIGMA = 2.0
NOTHING = 1e-6
"""Information of a direction of which nothing is known, 1/px^2."""
# Residuals are independent from block to block of this size, z y x.
_BLOCK = (8, 12, 12)


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
    curvature
        (3, 3), curvature over height of the peak, 1/px^2.
    voxels
        How many voted.
    information
        (3, 3), inverse covariance of the lag, 1/px^2; 0 in directions in which it isn't known.
    """

    lag_px: Array
    correlation: float
    curvature: Array
    voxels: int
    information: Array

    @property
    def covariance(self) -> Array:
        """Covariance of the lag, (3, 3), px^2; very large where nothing is known."""
        return np.asarray(np.linalg.inv(self.information + NOTHING * np.eye(3)))

    @property
    def sharpness(self) -> Array:
        """Curvature per axis, (3,), with the other two free to follow: 0 along an axis on which it isn't known."""
        values, vectors = np.linalg.eigh(self.curvature)
        return np.asarray(1 / np.diag((vectors / np.maximum(values, 1e-4)) @ vectors.T))


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
        None if the strips have no significant texture in common, two shifts explain it nearly as well, or the one that
        does is beyond the largest deviation and vague.
    """
    levels = _pyramid(first, second, search_px, voxel_size_um)
    top = levels[-1]
    low, high = top.window(nominal_px, search_px)
    a, b = top.filtered or (bandpass(top.first.values), bandpass(top.second.values))
    candidates = correlation_map(a, b, _voxel_mask(top.first), _voxel_mask(top.second), low, high).peaks()
    shifts = [_refined(levels, _common_texture(a, b, lag), lag) for lag in candidates]
    return _clear_winner([s for s in shifts if s is not None and _is_plausible(s, nominal_px, search_px)])


def _is_plausible(shift: Shift, nominal_px: Sequence[int], search_px: Sequence[int]) -> bool:
    """Whether a peak lies in the search window, or was climbed out of it and is known to a pixel in all directions.

    Where next to nothing overlaps, what is climbed out of the window is chance.
    """
    inside = np.abs(shift.lag_px - nominal_px) <= np.asarray(search_px) + _BEYOND_PX
    return bool(inside.all()) or float(np.linalg.eigvalsh(shift.information)[0]) >= 1.0


def _clear_winner(shifts: list[Shift]) -> Shift | None:
    """Return the shift of the highest correlation, or None if another one is nearly as high.

    Peaks on one ridge, which differ only along what both leave open, are no rivals: the texture looks the same along
    it, and across it they agree.
    """
    if not shifts:
        return None
    best = max(shifts, key=lambda shift: shift.correlation)
    limit = np.tanh(_CLEARLY * np.arctanh(min(best.correlation, 0.999)))
    others = [s for s in shifts if np.abs(s.lag_px - best.lag_px).max() > _SAME_PX and not same_shift(s, best)]
    return None if any(s.correlation > limit for s in others) else best


def same_shift(one: Shift, other: Shift) -> bool:
    """Whether two shifts differ by less than a pixel or so, or by no more than they are uncertain."""
    difference = one.lag_px - other.lag_px
    covariance = one.covariance + other.covariance + _CLOSE_PX**2 * np.eye(3)
    return float(difference @ np.linalg.solve(covariance, difference)) <= _MANY_SIGMA**2


def _refined(levels: list[_Level], texture: Array, found: Sequence[int]) -> Shift | None:
    """Follow a peak of the coarsest level down to the finest; None if it is lost on the way."""
    top = levels[-1]
    lag = np.asarray(found, dtype=np.float64)
    for level, coarser in zip(levels[::-1], [top, *levels[:0:-1]], strict=True):
        start = np.rint(lag * coarser.factors / level.factors).astype(int)
        pieces = _pieces(level, start, texture, top.factors / level.factors)
        peak = _climb(pieces)
        if peak is None:
            return None
        whole, offset, curvature, height = peak
        lag = start + whole + offset
    voxels, information = _information(pieces, whole, offset, curvature)
    return Shift(lag, height, curvature, voxels, information)


@dataclass(frozen=True)
class _Level:
    first: Strip
    second: Strip
    factors: Array

    @cached_property
    def filtered(self) -> tuple[Array, Array] | None:
        """Both strips, band-passed, for all candidates; None for the finest level, of which small parts are needed."""
        if self.factors.max() == 1:
            return None
        return bandpass(self.first.values), bandpass(self.second.values)

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


def _climb(pieces: Sequence[_Piece]) -> tuple[Array, Array, Array, float] | None:
    """Climb the correlation from where the pieces lie on each other to its peak; None if it is out of reach.

    Returns
    -------
    whole, offset
        (3,), lag of the highest voxel of the correlation, and of its top from there.
    curvature, height
        Of the top.
    """
    known: dict[tuple[int, ...], float] = {}

    def look(lags: Array) -> Array:
        new = [lag for lag in map(tuple, lags.tolist()) if lag not in known]
        known.update(zip(new, correlations_at(pieces, np.array(new, dtype=int).reshape(-1, 3)).tolist(), strict=True))
        return np.array([known[tuple(lag)] for lag in lags.tolist()])

    peak = np.zeros(3, dtype=int)
    while True:
        around = peak + _neighbours(1)
        values = look(around)
        best = around[np.argmax(values)]
        if (best == peak).all():
            break
        peak = best
        if (np.abs(peak) >= _REACH).any():
            return None
    offset, curvature, height = quadratic_peak(values.reshape(3, 3, 3))
    if height <= 0:
        return None
    return peak, offset, curvature, height


def _information(
    pieces: Sequence[_Piece], whole: Array, offset: Array, curvature: Array
) -> tuple[int, NDArray[np.float64]]:
    """Return how many voxels voted, and the inverse covariance of the lag at which the pieces correlate best.

    The lag maximises the sum of a(v + lag) b(v). Its error is the inverse of that sum's second derivative times the sum
    of residuals times gradients, whose variance is that over the blocks.
    """
    aligned = [_aligned(piece, whole) for piece in pieces]
    product = sum(float(np.vdot(a, b)) for a, b in aligned)
    energy = sum(float(np.vdot(a, a)) for a, _ in aligned)
    scores = np.concatenate([_scores(a, b, offset, product / max(energy, 1e-30)) for a, b in aligned])
    squares = (scores**2).sum(axis=1)
    # What two or three blocks say of the variance is little.
    blocks = float(squares.sum() ** 2 / max(float((squares**2).sum()), 1e-30))
    covariance = scores.T @ scores * blocks / max(blocks - 3, 0.25)
    steep = curvature * product
    known = steep @ np.linalg.solve(covariance + 1e-9 * max(np.trace(covariance), 1e-30) * np.eye(3), steep)
    return sum(a.size for a, _ in aligned), (known + known.T) / 2


def _aligned(piece: _Piece, whole: Array) -> tuple[Array, Array]:
    """Return the voxels of both that lie on each other on observed planes, of mean 0."""
    first, second, first_planes, second_planes, lag = piece
    start = [int(o) + int(w) for o, w in zip(lag, whole, strict=True)]
    inside = Box.whole(first.shape).shifted([-v for v in start]).intersection(Box.whole(second.shape))
    there = inside.shifted(start)
    seen = second_planes[inside.slices[0]] & first_planes[there.slices[0]]
    a, b = first[there.slices][seen], second[inside.slices][seen]
    return a - a.mean() if a.size else a, b - b.mean() if b.size else b


def _scores(a: Array, b: Array, offset: Array, gain: float) -> Array:
    """Return the sums over blocks, (n, 3), of what is left of b when a is moved by an offset, times a's gradient."""
    if min(a.shape, default=0) < 2:
        return np.zeros((0, 3))
    gradient = np.gradient(a)
    rest = b - gain * a
    for slope, o in zip(gradient, offset, strict=True):
        rest -= (gain * o) * slope
    sums = []
    for slope in gradient:
        product = rest * slope
        for axis, size in enumerate(_BLOCK):
            product = np.add.reduceat(product, np.arange(0, product.shape[axis], size), axis=axis)
        sums.append(product.ravel())
    return np.stack(sums, axis=1).astype(np.float64)


def _pieces(level: _Level, start: Array, texture: Array, texture_factors: Array) -> list[_Piece]:
    """Filtered pieces of both strips around the expected overlap: those with most texture in common."""
    first, second = level.first, level.second
    filtered = level.filtered
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
                _filtered(first.values, reach) if filtered is None else np.ascontiguousarray(filtered[0][reach.slices]),
                _filtered(second.values, box) if filtered is None else np.ascontiguousarray(filtered[1][box.slices]),
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
