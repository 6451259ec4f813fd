"""Coarser voxels: means rounded to nearest for brightness, the most frequent id for labels.

Pyramids halve axes, and for this the kernels take the same eight voxels always: where an axis isn't halved or ends, a
voxel counts twice, and so do all of its block, which changes neither mean nor mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import Kind


def downsample(array: NDArray[Any], factors: Sequence[int], kind: Kind = "image") -> NDArray[Any]:
    """Merge blocks of voxels into one voxel each.

    Parameters
    ----------
    array
        Shape (z, y, x).
    factors
        Voxels per block, z y x. Blocks at the far ends may be smaller; they count the voxels that they have.
    kind
        ``"image"``: the mean, for integers rounded to nearest with halves up. ``"labels"``: the most frequent id,
        the first met in z, y, x order among equally frequent ones.

    Returns
    -------
    ndarray
        Same type, shape ``ceil(shape / factors)``.

    Raises
    ------
    InputError
        For the mean of 64-bit integers, whose sums don't fit.
    """
    fz, fy, fx = (int(f) for f in factors)
    if (fz, fy, fx) == (1, 1, 1):
        return array
    array = np.ascontiguousarray(array)
    coarse = np.empty(_coarse_shape(array, (fz, fy, fx)), array.dtype)
    halving = max(fz, fy, fx) <= 2
    if kind == "labels":
        if halving:
            _modes_of_8(array, coarse, np.empty(array.shape[2], np.bool_), fz, fy, fx)
        else:
            _modes(array, coarse, fz, fy, fx)
        return coarse
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        raise InputError("64-bit integers are ids, which have no mean: open the volume with --kind labels")
    if array.dtype.kind not in "iu":
        sums = np.empty(array.shape[2] if halving else coarse.shape[2], np.float64)
        (_means_of_8 if halving else _means)(array, coarse, sums, fz, fy, fx)
    elif halving:
        narrow = "i8" if array.dtype.itemsize == 4 else f"{array.dtype.kind}{2 * array.dtype.itemsize}"
        _rounded_means_of_8(array, coarse, np.empty(array.shape[2], narrow), fz, fy, fx)
    else:
        _rounded_means(array, coarse, np.empty(coarse.shape[2], np.int64), fz, fy, fx)
    return coarse


def block_means(array: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    """Return means of blocks of voxels, not rounded; see `downsample`."""
    fz, fy, fx = (int(f) for f in factors)
    if (fz, fy, fx) == (1, 1, 1):
        return array.astype(np.float32)
    means = np.empty(_coarse_shape(array, (fz, fy, fx)), np.float32)
    narrow = array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.dtype.itemsize < 8)
    sums = np.empty(means.shape[2], np.int64 if narrow else np.float64)
    _means(np.ascontiguousarray(array), means, sums, fz, fy, fx)
    return means


def _coarse_shape(array: NDArray[Any], factors: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(-(-n // f) for n, f in zip(array.shape, factors, strict=True))


@njit(nogil=True, cache=True)
def _rounded_means_of_8(
    array: NDArray[Any], means: NDArray[Any], sums: NDArray[Any], fz: int, fy: int, fx: int
) -> None:
    """Average integers; ``sums`` is a row of twice their width, which holds eight and keeps the loops wide."""
    nz, ny, nx = array.shape
    full = nx // 2
    for i in range(means.shape[0]):
        z0, z1 = i * fz, min(i * fz + fz - 1, nz - 1)
        for j in range(means.shape[1]):
            y0, y1 = j * fy, min(j * fy + fy - 1, ny - 1)
            a, b, c, d = array[z0, y0], array[z0, y1], array[z1, y0], array[z1, y1]
            row = means[i, j]
            for x in range(nx):
                sums[x] = a[x] + b[x] + c[x] + d[x]
            if fx == 2:
                for k in range(full):
                    row[k] = (sums[2 * k] + sums[2 * k + 1] + 4) >> 3
                if nx % 2:
                    row[full] = (sums[nx - 1] + 2) >> 2
            else:
                for k in range(nx):
                    row[k] = (sums[k] + 2) >> 2


@njit(nogil=True, cache=True)
def _means_of_8(array: NDArray[Any], means: NDArray[Any], sums: NDArray[Any], fz: int, fy: int, fx: int) -> None:
    nz, ny, nx = array.shape
    full = nx // 2
    for i in range(means.shape[0]):
        z0, z1 = i * fz, min(i * fz + fz - 1, nz - 1)
        for j in range(means.shape[1]):
            y0, y1 = j * fy, min(j * fy + fy - 1, ny - 1)
            a, b, c, d = array[z0, y0], array[z0, y1], array[z1, y0], array[z1, y1]
            row = means[i, j]
            for x in range(nx):
                sums[x] = np.float64(a[x]) + b[x] + c[x] + d[x]
            if fx == 2:
                for k in range(full):
                    row[k] = (sums[2 * k] + sums[2 * k + 1]) / 8
                if nx % 2:
                    row[full] = sums[nx - 1] / 4
            else:
                for k in range(nx):
                    row[k] = sums[k] / 4


@njit(nogil=True, cache=True)
def _modes_of_8(array: NDArray[Any], modes: NDArray[Any], differ: NDArray[Any], fz: int, fy: int, fx: int) -> None:
    """Take modes; ``differ`` is a row of booleans, whether the four rows of a block differ."""
    nz, ny, nx = array.shape
    for i in range(modes.shape[0]):
        z0, z1 = i * fz, min(i * fz + fz - 1, nz - 1)
        for j in range(modes.shape[1]):
            y0, y1 = j * fy, min(j * fy + fy - 1, ny - 1)
            a, b, c, d = array[z0, y0], array[z0, y1], array[z1, y0], array[z1, y1]
            for x in range(nx):
                differ[x] = (a[x] != b[x]) | (a[x] != c[x]) | (a[x] != d[x])
            for k in range(modes.shape[2]):
                x0, x1 = k * fx, min(k * fx + fx - 1, nx - 1)
                best = a[x0]
                if differ[x0] | differ[x1] | (best != a[x1]):  # most blocks lie inside a region
                    v = (best, a[x1], b[x0], b[x1], c[x0], c[x1], d[x0], d[x1])
                    same = 0
                    for other in range(8):
                        same += v[other] == best
                    for one in range(1, 8):
                        if same >= 4:  # no later one is more frequent
                            break
                        times = 0
                        for other in range(8):
                            times += v[other] == v[one]
                        if times > same:
                            same = times
                            best = v[one]
                modes[i, j, k] = best


# Any other factors. These take a row of sums to fill, in the type in which sums are exact: int64 or float64.


@njit(nogil=True, cache=True)
def _rounded_means(
    array: NDArray[Any], means: NDArray[Any], sums: NDArray[np.int64], fz: int, fy: int, fx: int
) -> None:
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            rows = _sum_rows(array, sums, i * fz, min(i * fz + fz, array.shape[0]), j * fy, fy, fx)
            for k in range(means.shape[2]):
                count = rows * (min(k * fx + fx, array.shape[2]) - k * fx)
                means[i, j, k] = (2 * sums[k] + count) // (2 * count)


@njit(nogil=True, cache=True)
def _means(array: NDArray[Any], means: NDArray[Any], sums: NDArray[Any], fz: int, fy: int, fx: int) -> None:
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            rows = _sum_rows(array, sums, i * fz, min(i * fz + fz, array.shape[0]), j * fy, fy, fx)
            for k in range(means.shape[2]):
                count = rows * (min(k * fx + fx, array.shape[2]) - k * fx)
                means[i, j, k] = sums[k] / count


@njit(nogil=True, cache=True)
def _sum_rows(array: NDArray[Any], sums: NDArray[Any], z0: int, z1: int, y0: int, fy: int, fx: int) -> int:
    """Sum the blocks along one row of blocks; return how many rows of voxels went in."""
    y1 = min(y0 + fy, array.shape[1])
    nx = array.shape[2]
    full = nx // fx
    sums[:] = 0
    for z in range(z0, z1):
        for y in range(y0, y1):
            row = array[z, y]
            if fx == 2:  # by far the most common, and unrolled it runs several voxels at a time
                for k in range(full):
                    sums[k] += row[2 * k]
                    sums[k] += row[2 * k + 1]
            else:
                for k in range(full):
                    for x in range(k * fx, k * fx + fx):
                        sums[k] += row[x]
            for x in range(full * fx, nx):
                sums[full] += row[x]
    count: int = (z1 - z0) * (y1 - y0)
    return count


@njit(nogil=True, cache=True)
def _modes(array: NDArray[Any], modes: NDArray[Any], fz: int, fy: int, fx: int) -> None:
    nz, ny, nx = array.shape
    found = np.empty(fz * fy * fx, array.dtype)
    for i in range(modes.shape[0]):
        z1 = min(i * fz + fz, nz)
        for j in range(modes.shape[1]):
            y1 = min(j * fy + fy, ny)
            for k in range(modes.shape[2]):
                x1 = min(k * fx + fx, nx)
                first = array[i * fz, j * fy, k * fx]
                count = 0
                same = 0
                for z in range(i * fz, z1):
                    for y in range(j * fy, y1):
                        for x in range(k * fx, x1):
                            found[count] = array[z, y, x]
                            same += found[count] == first
                            count += 1
                best = first
                if 2 * same < count:
                    # Most blocks lie inside a region and never come here.
                    for a in range(count):
                        times = 0
                        for b in range(count):
                            times += found[b] == found[a]
                        if times > same:
                            same = times
                            best = found[a]
                modes[i, j, k] = best
