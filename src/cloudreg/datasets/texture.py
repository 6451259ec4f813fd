"""Fine structure without a picture of it: noise that is a function of where one asks, and of a seed.

Lattice values are hashed, so any part of an unbounded volume can be made alone, in any order.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_JIT = {"cache": True, "nogil": True}


@njit(**_JIT)
def hashed(i, j, k, seed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return a number in [0, 1) for a lattice point; neighbours are unrelated."""
    h = np.uint64(i + 1048576) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(j + 1048576) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= np.uint64(k + 1048576) * np.uint64(0x165667B19E3779F9)
    h ^= np.uint64(seed) * np.uint64(0xD6E8FEB86659FD93)
    # The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return np.float32(h >> np.uint64(40)) * np.float32(2.0**-24)


@njit(**_JIT)
def smooth_noise(z, y, x, wavelength, seed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return noise in [-1, 1] that varies over ``wavelength`` (lattice values, smoothly interpolated)."""
    # A rotated lattice hides its axes.
    z, y, x = (
        (0.36 * z + 0.48 * y - 0.80 * x) / wavelength,
        (-0.80 * z + 0.60 * y) / wavelength,
        (0.48 * z + 0.64 * y + 0.60 * x) / wavelength,
    )
    i, j, k = np.floor(z), np.floor(y), np.floor(x)
    fz, fy, fx = z - i, y - j, x - k
    fz, fy, fx = fz * fz * (3 - 2 * fz), fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    i, j, k = int(i), int(j), int(k)
    total = 0.0
    for a in range(2):
        wa = fz if a else 1 - fz
        for b in range(2):
            wb = wa * (fy if b else 1 - fy)
            total += wb * ((1 - fx) * hashed(i + a, j + b, k, seed) + fx * hashed(i + a, j + b, k + 1, seed))
    return 2 * total - 1


@njit(**_JIT)
def vessel(z, y, x, wavelength, width, seed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return 1 on the axis of thin winding tubes, falling to 0 over ``width``: where two noises are both zero."""
    p = smooth_noise(z, y, x, wavelength, seed)
    if abs(p) > 3 * width:
        return 0.0
    q = smooth_noise(z, y, x, wavelength, seed + 1)
    return np.exp(-(p * p + q * q) / (width * width))
