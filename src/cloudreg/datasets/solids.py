"""Smooth steps and solids of which the phantom's anatomy is built.

Solids are implicit functions divided by the length of their gradient, which is close to the distance from their
surface (G. Taubin, "Distance approximations for rasterizing implicit curves", ACM Trans. Graph. 13:3, 1994).
"""

from __future__ import annotations

import math

from numba import njit

_JIT = {"cache": True, "nogil": True, "fastmath": True}


@njit(**_JIT)
def smoothstep(x, low, high):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """0 below ``low``, 1 above ``high`` (which may be the smaller one), smooth between."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@njit(**_JIT)
def smooth_minimum(x, y, width):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The smaller one of two lengths, with a corner rounded over ``width``."""
    h = max(width - abs(x - y), 0.0) / width
    return min(x, y) - 0.25 * h * h * width


@njit(**_JIT)
def superellipsoid(a, d, s, ra, rd, rs, n):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Approximate depth below the surface of |a/ra|^n + |d/rd|^n + |s/rs|^n = 1."""
    x, y, z = abs(a) / ra, abs(d) / rd, abs(s) / rs
    if x >= 1 or y >= 1 or z >= 1:
        return min((1 - x) * ra, (1 - y) * rd, (1 - z) * rs)
    px, py, pz = x ** (n - 1), y ** (n - 1), z ** (n - 1)
    k = max(px * x + py * y + pz * z, 1e-9) ** (1 / n)
    slope = math.sqrt((px / ra) ** 2 + (py / rd) ** 2 + (pz / rs) ** 2) * k ** (1 - n)
    return (1 - k) / max(slope, 1e-9)


@njit(**_JIT)
def first_ellipsoid(table, a, d, s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the row of the first ellipsoid that holds the point, or -1."""
    for i in range(table.shape[0]):
        y = s - table[i, 4]
        if abs(y) < table[i, 7]:
            angle = table[i, 8] * (math.pi / 180)
            c, sn = math.cos(angle), math.sin(angle)
            u, v = a - table[i, 2], d - table[i, 3]
            p = (c * u + sn * v) / table[i, 5]
            q = (c * v - sn * u) / table[i, 6]
            y /= table[i, 7]
            if p * p + q * q + y * y < 1:
                return i
    return -1
