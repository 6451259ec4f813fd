"""Point-wise pieces of the hot loops: the weights and cells of interpolation, and vectors in a cell.

They are numba functions for the loops of `cloudreg.registration.rows` and `cloudreg.registration.nodes`. Positions are
fractional voxel indices.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.threads import along

# Four neighbours are read, weighted and stored at once, which takes a quarter off the loops' time. Numba leaves this to
# whoever asks for it. It does not change a result.
numba.config.SLP_VECTORIZE = 1

VALUE_KEEPING = {"nnan", "ninf", "nsz"}
"""Liberties that the compiler may take without changing a result. Reordering sums or fusing multiplications would be a
little faster, but then the code that is just compiled and the same code from the cache round differently, and a run
that was stopped and resumed gives other bytes."""

_INLINE = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING, "inline": "always"}

SPLINE_MARGIN = 3
"""Voxels of padding that `spline_coefficients` adds on every side."""


def spline_coefficients(image: NDArray[np.float32], outside: float) -> NDArray[np.float32]:
    """Return cubic B-spline coefficients whose spline passes through the voxels of ``image``.

    Parameters
    ----------
    image
        (z, y, x) float32.
    outside
        Value of the surroundings, by which `SPLINE_MARGIN` voxels are added on every side.

    Notes
    -----
    Unser, Aldroubi, Eden. B-spline signal processing, IEEE TSP 41:821-848, 1993. A gradient that is exact for the
    interpolant keeps the optimiser's model and its objective consistent; trilinear sampling of the atlas leaves
    half as much accuracy again on the table.
    """
    from scipy.ndimage import spline_filter1d

    coefficients = np.pad(image, SPLINE_MARGIN, constant_values=outside)
    for axis in range(3):
        coefficients = along(axis, spline_filter1d, coefficients, order=3, output=np.float32, mode="mirror")
    return coefficients


@njit(**_INLINE)
def spline_weights(t):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Weights of the four nodes around a position, for the value and for the derivative."""
    s = np.float32(1.0) - t
    w0 = s * s * s * np.float32(1 / 6)
    w3 = t * t * t * np.float32(1 / 6)
    w1 = np.float32(2 / 3) - t * t * (np.float32(1.0) - np.float32(0.5) * t)
    w2 = np.float32(1.0) - w0 - w1 - w3
    d0 = np.float32(-0.5) * s * s
    d3 = np.float32(0.5) * t * t
    d1 = t * (np.float32(1.5) * t - np.float32(2.0))
    d2 = -d0 - d1 - d3
    return w0, w1, w2, w3, d0, d1, d2, d3


@njit(**_INLINE)
def cell(position, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Lower node, fraction, and 1 where the position is free to move (0 where it was clamped to the grid)."""
    if position <= 0:
        return 0, np.float32(0), np.float32(0)
    if position >= count - 1:
        return count - 2, np.float32(1), np.float32(0)
    lower = int(position)
    return lower, np.float32(position - lower), np.float32(1)


@njit(cache=True, nogil=True, fastmath=VALUE_KEEPING, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def component_at(u, iz, iy, ix, fz, fy, fx, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Component k of the trilinear interpolant in a cell, compiled once for all loops that call it."""
    one = np.float32(1)
    gz, gy, gx = one - fz, one - fy, one - fx
    a, b, c, d = gz * gy, gz * fy, fz * gy, fz * fy
    near = a * u[iz, iy, ix, k] + b * u[iz, iy + 1, ix, k] + c * u[iz + 1, iy, ix, k] + d * u[iz + 1, iy + 1, ix, k]
    ix += 1
    far = a * u[iz, iy, ix, k] + b * u[iz, iy + 1, ix, k] + c * u[iz + 1, iy, ix, k] + d * u[iz + 1, iy + 1, ix, k]
    return gx * near + fx * far


@njit(**_INLINE)
def slopes_at(u, iz, iy, ix, fz, fy, fx, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Derivatives of component k of the trilinear interpolant per voxel, along z, y, x."""
    one = np.float32(1)
    a000 = u[iz, iy, ix, k]
    a001 = u[iz, iy, ix + 1, k]
    a010 = u[iz, iy + 1, ix, k]
    a011 = u[iz, iy + 1, ix + 1, k]
    a100 = u[iz + 1, iy, ix, k]
    a101 = u[iz + 1, iy, ix + 1, k]
    a110 = u[iz + 1, iy + 1, ix, k]
    a111 = u[iz + 1, iy + 1, ix + 1, k]
    gz, gy, gx = one - fz, one - fy, one - fx
    dz = gy * (gx * (a100 - a000) + fx * (a101 - a001)) + fy * (gx * (a110 - a010) + fx * (a111 - a011))
    dy = gz * (gx * (a010 - a000) + fx * (a011 - a001)) + fz * (gx * (a110 - a100) + fx * (a111 - a101))
    dx = gz * (gy * (a001 - a000) + fy * (a011 - a010)) + fz * (gy * (a101 - a100) + fy * (a111 - a110))
    return dz, dy, dx
