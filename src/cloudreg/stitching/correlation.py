"""Masked normalised cross-correlation of two 3D arrays, and where it peaks.

`correlation_map` looks at every lag of a window through FFTs; `correlations_at` looks at a few lags of chosen pieces,
voxel by voxel. A *lag* is the position of the second array's voxel (0, 0, 0) in the index frame of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage

Array = NDArray[Any]
Lag = tuple[int, int, int]

WINDOW = 21
"""Side in pixels of the square whose mean `bandpass` takes off."""

# Averages over fewer than this share of the voxels that the best placed lag has are left to chance.
_SMALLEST_OVERLAP = 0.2
# Standard deviations by which a peak must exceed the largest that chance is expected to give.
_ABOVE_CHANCE = 2.0
# A peak of less than this share of the highest one's significance is no rival of it; of the others, this many are.
_RIVAL = 0.7
_MOST_PEAKS = 4


@dataclass(frozen=True)
class CorrelationMap:
    """Correlation at every lag of a window.

    Parameters
    ----------
    low
        Lag of element (0, 0, 0).
    values
        Correlation in -1..1; 0 where too few voxels overlap.
    significance
        How many standard deviations it is from that of two arrays that have nothing in common.
    """

    low: Lag
    values: Array
    significance: Array

    def peaks(self) -> list[Lag]:
        """Return the most significant lag and its rivals, best first; none if chance alone may well have made it.

        The largest of n independent normal values is about ``sqrt(2 log n)``; lags that depend on each other only
        make it smaller.
        """
        highest = float(self.significance.max())
        chance = np.sqrt(2 * np.log(self.significance.size)) + _ABOVE_CHANCE
        if highest < chance:
            return []
        tops = self.significance == ndimage.maximum_filter(self.significance, 3, mode="nearest")
        at = np.argwhere(tops & (self.significance >= max(_RIVAL * highest, chance)))
        order = np.argsort(-self.significance[tuple(at.T)], kind="stable")[:_MOST_PEAKS]
        return [_lag(at[k] + self.low) for k in order]


def correlation_map(
    first: Array, second: Array, first_mask: Array, second_mask: Array, low: Sequence[int], high: Sequence[int]
) -> CorrelationMap:
    """Return the masked, zero-mean normalised cross-correlation at all lags from ``low`` to ``high``.

    Parameters
    ----------
    first, second
        (z, y, x), float; each about zero-mean, which keeps the float32 sums exact enough.
    first_mask, second_mask
        Same shapes, 1 where observed and 0 where not.
    low, high
        First and last lag looked at, z y x.

    Notes
    -----
    The sums over the voxels that both masks keep at a lag are correlations, so six FFTs give them for all lags [1]_.
    Neighbouring voxels of a texture are alike: the number of independent ones is that of all over the sum of the
    product of both autocorrelations [2]_; by Parseval that sum is the energy of the cross-correlation itself. From
    that number follows the standard deviation of the correlation's inverse hyperbolic tangent [3]_.

    References
    ----------
    .. [1] D. Padfield, "Masked object registration in the Fourier domain", IEEE Trans. Image Process. 21 (2012).
    .. [2] M. S. Bartlett, "Some aspects of the time-correlation problem in regard to tests of significance",
       J. R. Stat. Soc. 98 (1935).
    .. [3] R. A. Fisher, "On the probable error of a coefficient of correlation", Metron 1 (1921).
    """
    shape = [
        fft.next_fast_len(max(n1, n2, n1 - lo, n2 + hi), real=True)
        for n1, n2, lo, hi in zip(first.shape, second.shape, low, high, strict=True)
    ]
    a, b = np.where(first_mask, first, 0).astype(np.float32), np.where(second_mask, second, 0).astype(np.float32)
    fa, fa2, fm = (_spectrum(v, shape) for v in (a, a * a, first_mask))
    gb, gb2, gm = (np.conj(_spectrum(v, shape)) for v in (b, b * b, second_mask))

    everywhere = fft.irfftn(fa * gb, shape)
    shared_energy = float(np.vdot(everywhere, everywhere)) / max(float(np.vdot(a, a)) * float(np.vdot(b, b)), 1e-30)
    # A negative lag sits at the end of the periodic result.
    window = np.ix_(*(np.arange(lo, hi + 1) % n for lo, hi, n in zip(low, high, shape, strict=True)))
    product = everywhere[window]
    count, sum_a, sum_b, square_a, square_b = (
        fft.irfftn(spectrum, shape)[window] for spectrum in (fm * gm, fa * gm, fm * gb, fa2 * gm, fm * gb2)
    )

    count = np.rint(count)
    enough = count >= max(_SMALLEST_OVERLAP * float(count.max()), 1.0)
    count = np.maximum(count, 1)
    variance_a = square_a - sum_a**2 / count
    variance_b = square_b - sum_b**2 / count
    # What float32 leaves of a variance of zero must not be divided by.
    enough &= (variance_a > 1e-4 * variance_a.max()) & (variance_b > 1e-4 * variance_b.max())
    scale = np.sqrt(np.where(enough, variance_a * variance_b, 1))
    values = np.where(enough, np.clip((product - sum_a * sum_b / count) / scale, -1, 1), 0)
    independent = count / max(shared_energy, 1e-30)
    significance = np.arctanh(np.clip(values, -0.9999, 0.9999)) * np.sqrt(np.maximum(independent - 3, 0))
    return CorrelationMap(_lag(low), values, significance)


def correlations_at(pieces: Sequence[tuple[Array, Array, Array, Array, Lag]], lags: Array) -> Array:
    """Return the correlation, over all pieces together, at a few lags.

    Parameters
    ----------
    pieces
        Tuples of first and second array (float32), which of their planes are observed (bool), and the lag of the
        second's voxel (0, 0, 0) in the first at which ``lags`` count as zero.
    lags
        (n, 3) whole numbers.

    Returns
    -------
    ndarray, shape (n,)
        Zero-mean normalised cross-correlation; -1 where nothing overlaps.
    """
    sums = np.zeros((len(lags), 6))
    for first, second, first_planes, second_planes, start in pieces:
        _add_sums(first, second, first_planes, second_planes, np.asarray(lags) + np.asarray(start), sums)
    count = np.maximum(sums[:, 0], 1)
    variances = (sums[:, 3] - sums[:, 1] ** 2 / count) * (sums[:, 4] - sums[:, 2] ** 2 / count)
    good = variances > 0
    numerator = sums[:, 5] - sums[:, 1] * sums[:, 2] / count
    return np.where(good, numerator / np.sqrt(np.where(good, variances, 1)), -1.0)


def quadratic_peak(cube: Array) -> tuple[Array, Array, float]:
    """Return the top of the quadratic surface through a 3 x 3 x 3 neighbourhood of a correlation's maximum.

    Parameters
    ----------
    cube
        (3, 3, 3), the largest value at its centre.

    Returns
    -------
    offset
        (3,), of the top from the centre, at most 1 per axis.
    curvature
        (3, 3), curvature over height, in 1/px^2; positive semidefinite, and 0 along a direction in which the position
        isn't known.
    height
        Value at the top.

    Notes
    -----
    The surface is fitted to the logarithm: the correlation of a smooth texture falls off like a Gaussian, for which
    that is exact, where a parabola is drawn to whole pixels.
    """
    floor = 0.02 * max(float(cube.max()), 1e-6)
    logs = np.log(np.maximum(cube, floor)).ravel()
    constant, *rest = np.linalg.lstsq(_DESIGN, _WEIGHTS * logs, rcond=None)[0]
    gradient = np.array(rest[:3])
    zz, yy, xx, zy, zx, yx = rest[3:]
    curvature = -np.array([[2 * zz, zy, zx], [zy, 2 * yy, yx], [zx, yx, 2 * xx]])
    # A ridge or a saddle has no top along some direction: stay at the centre there.
    values, vectors = np.linalg.eigh(curvature)
    inverse = (vectors / np.maximum(values, 1e-4)) @ vectors.T
    offset = np.clip(inverse @ gradient, -1, 1)
    height = float(np.exp(constant + gradient @ offset - 0.5 * offset @ curvature @ offset))
    return offset, (vectors * np.maximum(values, 0)) @ vectors.T, min(height, 1.0)


def bandpass(planes: Array, window: int = WINDOW) -> Array:
    """Return planes without pixel noise and without anything wider than ``window`` pixels.

    Shading that is left would correlate at the nominal position. Planes are filtered one by one, so that a lost
    plane touches no other.

    Parameters
    ----------
    planes
        (z, y, x).
    window
        Side of the square whose mean is taken off, px.
    """
    # The root makes the shot noise of bright and dark places alike and keeps single bright cells from ruling alone.
    values = np.sqrt(np.maximum(planes, 0, dtype=np.float32))
    result = np.empty(values.shape, dtype=np.float32)
    if values.size:
        _filter(values, window, _GAUSSIAN, result)
    return result


def _spectrum(values: Array, shape: Sequence[int]) -> Array:
    return np.asarray(fft.rfftn(values.astype(np.float32), shape))


def _lag(values: Sequence[int]) -> Lag:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _design() -> tuple[Array, Array]:
    """Monomials of the quadratic surface on the 27 voxels, and their weights: neighbours count more than corners."""
    z, y, x = (axis.ravel() for axis in np.mgrid[-1:2, -1:2, -1:2].astype(float))
    weights = 0.5 ** (0.5 * (z * z + y * y + x * x))
    monomials = np.stack([np.ones(27), z, y, x, z * z, y * y, x * x, z * y, z * x, y * x], axis=1)
    return monomials * weights[:, None], weights


_DESIGN, _WEIGHTS = _design()


# A Gaussian of one pixel, and where it ends.
_TAPS = 3
_GAUSSIAN = np.exp(-0.5 * np.arange(-_TAPS, _TAPS + 1.0) ** 2)
_GAUSSIAN = (_GAUSSIAN / _GAUSSIAN.sum()).astype(np.float32)


@njit(cache=True, nogil=True)
def _filter(values: Array, window: int, gaussian: Array, result: Array) -> None:
    """Smooth planes and take off the mean of a square around each pixel; the edges are repeated outwards."""
    depth, height, width = values.shape
    taps, low, high = gaussian.size // 2, window // 2, window - window // 2 - 1
    smooth, mean = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    column, row = np.empty(width), np.empty(width + 2 * taps, np.float32)
    for z in range(depth):
        plane = values[z]
        # Sums over a window that slides down; in float64, so that what is added is taken off again.
        column[:] = 0
        for k in range(-low, high + 1):
            line = plane[min(max(k, 0), height - 1)]
            for x in range(width):
                column[x] += line[x]
        for y in range(height):
            smooth[y] = 0
            for k in range(-taps, taps + 1):
                line, share, out = plane[min(max(y + k, 0), height - 1)], gaussian[k + taps], smooth[y]
                for x in range(width):
                    out[x] += share * line[x]
            new, old, out = plane[min(y + high + 1, height - 1)], plane[max(y - low, 0)], mean[y]
            for x in range(width):
                out[x] = column[x] / window
                column[x] += new[x] - old[x]
        for y in range(height):
            row[:taps] = smooth[y, 0]
            row[taps : width + taps] = smooth[y]
            row[width + taps :] = smooth[y, width - 1]
            out = result[z, y]
            out[:] = 0
            for k in range(2 * taps + 1):
                share, line = gaussian[k], row[k : k + width]
                for x in range(width):
                    out[x] += share * line[x]
            line, total = mean[y], 0.0
            for k in range(-low, high + 1):
                total += line[min(max(k, 0), width - 1)]
            for x in range(width):
                out[x] -= total / window
                total += line[min(x + high + 1, width - 1)] - line[max(x - low, 0)]


# Columns are multiplied one beside the other, which is fast and has one order only. Sums in any order would be as fast,
# and differ between code that is just compiled and the same code from the cache: a resumed run would give other bytes.
@njit(cache=True, nogil=True)
def _add_sums(first: Array, second: Array, first_planes: Array, second_planes: Array, lags: Array, sums: Array) -> None:
    """Add count, sums, sums of squares and of products of the voxels that both arrays have at each lag."""
    nz, ny, nx = second.shape
    of_first, of_second = _integrals(first), _integrals(second)
    products = np.zeros(nx, np.float32)
    for k in range(lags.shape[0]):
        dz, dy, dx = lags[k, 0], lags[k, 1], lags[k, 2]
        x0, x1 = max(0, -dx), min(nx, first.shape[2] - dx)
        y0, y1 = max(0, -dy), min(ny, first.shape[1] - dy)
        if x1 <= x0 or y1 <= y0:
            continue
        for z in range(max(0, -dz), min(nz, first.shape[0] - dz)):
            if not (second_planes[z] and first_planes[z + dz]):
                continue
            # The columns of one plane in float32; they are added in float64.
            for y in range(y0, y1):
                a, b = first[z + dz, y + dy, x0 + dx : x1 + dx], second[z, y, x0:x1]
                for x in range(x1 - x0):
                    products[x] += a[x] * b[x]
            sums[k, 0] += (y1 - y0) * (x1 - x0)
            for i in range(2):
                sums[k, 1 + 2 * i] += _within(of_first[i, z + dz], y0 + dy, y1 + dy, x0 + dx, x1 + dx)
                sums[k, 2 + 2 * i] += _within(of_second[i, z], y0, y1, x0, x1)
            for x in range(x1 - x0):
                sums[k, 5] += products[x]
                products[x] = 0


@njit(cache=True, nogil=True)
def _integrals(values: Array) -> Array:
    """Return the sums of values and of their squares over all that is above and left, (2, z, y + 1, x + 1)."""
    nz, ny, nx = values.shape
    result = np.zeros((2, nz, ny + 1, nx + 1))
    for z in range(nz):
        for y in range(ny):
            total, squares = 0.0, 0.0
            for x in range(nx):
                value = np.float64(values[z, y, x])
                total += value
                squares += value * value
                result[0, z, y + 1, x + 1] = result[0, z, y, x + 1] + total
                result[1, z, y + 1, x + 1] = result[1, z, y, x + 1] + squares
    return result


@njit(cache=True, nogil=True)
def _within(integral: Array, y0: int, y1: int, x0: int, x1: int) -> float:
    """Return the sum over some rows and columns."""
    inside: float = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return inside
