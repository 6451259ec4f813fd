"""The loops over voxels and points: arrays in, arrays out, no files and no Python objects.

Every voxel's source position is computed in float64 from its *global* index, in a fixed order of operations, so the
bytes of a result don't depend on how the destination is cut into blocks. The helpers are inlined: calls that pass
arrays cost more than what they compute; but not where only the image's faces come, which is not worth the compilation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True, inline="always")
def _cell(position: float, n: int) -> tuple[Any, Any, float]:
    """Return both neighbours of a clamped position on an axis of n samples, and the weight of the second.

    Unsigned indices spare the compiled loop numpy's rule that negative ones count from the end.
    """
    clamped = min(max(position, 0.0), n - 1.0)
    low = max(0, min(int(clamped), n - 2))
    return np.uintp(low), np.uintp(min(low + 1, n - 1)), clamped - low


@njit(cache=True, nogil=True, inline="always")
def _vector_at(vectors: Array, z: float, y: float, x: float) -> tuple[float, float, float]:
    """Trilinear value of a (3, z, y, x) field at a fractional index, clamped at the edges."""
    z0, z1, wz = _cell(z, vectors.shape[1])
    y0, y1, wy = _cell(y, vectors.shape[2])
    x0, x1, wx = _cell(x, vectors.shape[3])
    w00, w01, w10, w11 = (1 - wz) * (1 - wy), (1 - wz) * wy, wz * (1 - wy), wz * wy
    vx = 1 - wx
    dz = (
        w00 * (vx * vectors[0, z0, y0, x0] + wx * vectors[0, z0, y0, x1])
        + w01 * (vx * vectors[0, z0, y1, x0] + wx * vectors[0, z0, y1, x1])
        + w10 * (vx * vectors[0, z1, y0, x0] + wx * vectors[0, z1, y0, x1])
        + w11 * (vx * vectors[0, z1, y1, x0] + wx * vectors[0, z1, y1, x1])
    )
    dy = (
        w00 * (vx * vectors[1, z0, y0, x0] + wx * vectors[1, z0, y0, x1])
        + w01 * (vx * vectors[1, z0, y1, x0] + wx * vectors[1, z0, y1, x1])
        + w10 * (vx * vectors[1, z1, y0, x0] + wx * vectors[1, z1, y0, x1])
        + w11 * (vx * vectors[1, z1, y1, x0] + wx * vectors[1, z1, y1, x1])
    )
    dx = (
        w00 * (vx * vectors[2, z0, y0, x0] + wx * vectors[2, z0, y0, x1])
        + w01 * (vx * vectors[2, z0, y1, x0] + wx * vectors[2, z0, y1, x1])
        + w10 * (vx * vectors[2, z1, y0, x0] + wx * vectors[2, z1, y0, x1])
        + w11 * (vx * vectors[2, z1, y1, x0] + wx * vectors[2, z1, y1, x1])
    )
    return dz, dy, dx


@njit(cache=True, nogil=True)
def vectors_at(vectors: Array, index: Array, out: Array) -> None:
    """Fill ``out`` (n, 3) with the field's values at fractional indices (n, 3)."""
    for i in range(index.shape[0]):
        out[i, 0], out[i, 1], out[i, 2] = _vector_at(vectors, index[i, 0], index[i, 1], index[i, 2])


@njit(cache=True, nogil=True, inline="always")
def _along_row(matrix: Array, i: float, j: float) -> tuple[float, float, float]:
    """Return what an affine (3, 4) gives for indices (i, j, 0)."""
    return (
        matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3],
        matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3],
        matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3],
    )


@njit(cache=True, nogil=True, inline="always")
def _source_at(
    base: Array,
    gain: Array,
    to_field: Array,
    vectors: Array,
    row: tuple[float, float, float],
    field_row: tuple[float, float, float],
    k: float,
) -> tuple[float, float, float]:
    """Source index of a destination voxel: ``base @ index + gain @ u(to_field @ index)``."""
    dz, dy, dx = _vector_at(
        vectors,
        field_row[0] + to_field[0, 2] * k,
        field_row[1] + to_field[1, 2] * k,
        field_row[2] + to_field[2, 2] * k,
    )
    return (
        row[0] + base[0, 2] * k + (gain[0, 0] * dz + gain[0, 1] * dy + gain[0, 2] * dx),
        row[1] + base[1, 2] * k + (gain[1, 0] * dz + gain[1, 1] * dy + gain[1, 2] * dx),
        row[2] + base[2, 2] * k + (gain[2, 0] * dz + gain[2, 1] * dy + gain[2, 2] * dx),
    )


@njit(cache=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _or_zero(source: Array, z: int, y: int, x: int) -> float:
    if 0 <= z < source.shape[0] and 0 <= y < source.shape[1] and 0 <= x < source.shape[2]:
        return float(source[z, y, x])
    return 0.0


@njit(cache=True, nogil=True, inline="always")
def _linear_at(source: Array, start: Array, z: float, y: float, x: float) -> float:
    """Trilinear value at a global index; the array, whose first voxel is ``start``, is surrounded by zeros."""
    fz, fy, fx = np.floor(z), np.floor(y), np.floor(x)
    z0, y0, x0 = int(fz) - start[0], int(fy) - start[1], int(fx) - start[2]
    nz, ny, nx = source.shape
    if z0 < -1 or y0 < -1 or x0 < -1 or z0 >= nz or y0 >= ny or x0 >= nx:
        return 0.0
    wz, wy, wx = z - fz, y - fy, x - fx
    if z0 >= 0 and y0 >= 0 and x0 >= 0 and z0 < nz - 1 and y0 < ny - 1 and x0 < nx - 1:
        a, b, c = np.uintp(z0), np.uintp(y0), np.uintp(x0)
        one = np.uintp(1)
        c00 = source[a, b, c] * (1 - wx) + source[a, b, c + one] * wx
        c01 = source[a, b + one, c] * (1 - wx) + source[a, b + one, c + one] * wx
        c10 = source[a + one, b, c] * (1 - wx) + source[a + one, b, c + one] * wx
        c11 = source[a + one, b + one, c] * (1 - wx) + source[a + one, b + one, c + one] * wx
    else:
        c00 = _or_zero(source, z0, y0, x0) * (1 - wx) + _or_zero(source, z0, y0, x0 + 1) * wx
        c01 = _or_zero(source, z0, y0 + 1, x0) * (1 - wx) + _or_zero(source, z0, y0 + 1, x0 + 1) * wx
        c10 = _or_zero(source, z0 + 1, y0, x0) * (1 - wx) + _or_zero(source, z0 + 1, y0, x0 + 1) * wx
        c11 = _or_zero(source, z0 + 1, y0 + 1, x0) * (1 - wx) + _or_zero(source, z0 + 1, y0 + 1, x0 + 1) * wx
    return float((c00 * (1 - wy) + c01 * wy) * (1 - wz) + (c10 * (1 - wy) + c11 * wy) * wz)


@njit(cache=True, nogil=True)
def sample_linear(
    source: Array,
    start: Array,
    box_start: Array,
    base: Array,
    gain: Array,
    to_field: Array,
    vectors: Array,
    samples: Array,
    out: Array,
) -> None:
    """Fill a box of the destination with trilinear values.

    Parameters
    ----------
    source, start
        Part of the source (z, y, x), and the global index of its first voxel; zeros lie around it.
    box_start
        Global index of the destination box's first voxel.
    base, gain, to_field, vectors
        The map, see `cloudreg.transforms.resample.VoxelMap`.
    samples
        Points per destination voxel along z, y, x; the value is their mean, which is the anti-aliasing filter where
        the destination is coarser than the source.
    out
        The box, float (z, y, x).
    """
    nz, ny, nx = out.shape
    sz, sy, sx = samples[0], samples[1], samples[2]
    scale = 1.0 / (sz * sy * sx)
    sums = np.empty(nx)
    for i in range(nz):
        for j in range(ny):
            sums[:] = 0.0
            for a in range(sz):
                for b in range(sy):
                    gi = box_start[0] + i + ((a + 0.5) / sz - 0.5)
                    gj = box_start[1] + j + ((b + 0.5) / sy - 0.5)
                    row = _along_row(base, gi, gj)
                    field_row = _along_row(to_field, gi, gj)
                    for k in range(nx):
                        for c in range(sx):
                            gk = box_start[2] + k + ((c + 0.5) / sx - 0.5)
                            z, y, x = _source_at(base, gain, to_field, vectors, row, field_row, gk)
                            sums[k] += _linear_at(source, start, z, y, x)
            for k in range(nx):
                out[i, j, k] = sums[k] * scale


@njit(cache=True, nogil=True)
def sample_nearest(
    source: Array,
    start: Array,
    box_start: Array,
    base: Array,
    gain: Array,
    to_field: Array,
    vectors: Array,
    plane: Array,
    out: Array,
    beyond: Array,
) -> None:
    """Fill a box of the destination with the nearest source voxel's value, and the side of a plane it lies on.

    Parameters
    ----------
    plane
        Four numbers: a voxel whose source index s has ``plane[:3] @ s + plane[3] > 0`` is beyond the plane.
    out
        The box, of the source's type; 0 outside the source.
    beyond
        uint8 of the same shape; 1 beyond the plane. Not filled where its size is 0.

    Notes
    -----
    The others are those of `sample_linear`. Half-way positions go to the higher index.
    """
    nz, ny, nx = out.shape
    mz, my, mx = source.shape
    sided = beyond.size > 0
    for i in range(nz):
        for j in range(ny):
            gi, gj = float(box_start[0] + i), float(box_start[1] + j)
            row = _along_row(base, gi, gj)
            field_row = _along_row(to_field, gi, gj)
            for k in range(nx):
                z, y, x = _source_at(base, gain, to_field, vectors, row, field_row, float(box_start[2] + k))
                a = int(np.floor(z + 0.5)) - start[0]
                b = int(np.floor(y + 0.5)) - start[1]
                c = int(np.floor(x + 0.5)) - start[2]
                if 0 <= a < mz and 0 <= b < my and 0 <= c < mx:
                    out[i, j, k] = source[a, b, c]
                else:
                    out[i, j, k] = 0
                if sided:
                    beyond[i, j, k] = plane[0] * z + plane[1] * y + plane[2] * x + plane[3] > 0
