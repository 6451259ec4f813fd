"""Coarser voxels: means rounded to nearest for brightness, the most frequent id for labels."""

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
    if kind == "labels":
        modes = np.empty(_coarse_shape(array, (fz, fy, fx)), array.dtype)
        _modes(np.ascontiguousarray(array), modes, fz, fy, fx)
        return modes
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        raise InputError("64-bit integers are ids, which have no mean: open the volume with --kind labels")
    means = np.empty(_coarse_shape(array, (fz, fy, fx)), array.dtype)
    if array.dtype.kind in "iu":
        _rounded_means(np.ascontiguousarray(array), means, np.empty(means.shape[2], np.int64), fz, fy, fx)
    else:
        _means(np.ascontiguousarray(array), means, np.empty(means.shape[2], np.float64), fz, fy, fx)
    return means


def block_means(array: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    """Return means of blocks of voxels, not rounded; see `downsample`."""
    fz, fy, fx = (int(f) for f in factors)
    means = np.empty(_coarse_shape(array, (fz, fy, fx)), np.float32)
    narrow = array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.dtype.itemsize < 8)
    sums = np.empty(means.shape[2], np.int64 if narrow else np.float64)
    _means(np.ascontiguousarray(array), means, sums, fz, fy, fx)
    return means


def _coarse_shape(array: NDArray[Any], factors: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(-(-n // f) for n, f in zip(array.shape, factors, strict=True))


# The kernels take a row of sums to fill, in the type in which sums are exact: int64 or float64.


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
