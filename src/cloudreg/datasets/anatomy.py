"""The shape of a mouse-like brain: which structure and tissue lies at a point.

Points are given in the millimetres of an adult mouse: ``a`` from the tip of the olfactory bulbs backward, ``d`` from
the top downward, ``s`` from the midplane to the side (its sign is ignored: the anatomy is symmetric).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cloudreg.datasets.cerebrum import NUCLEI, cerebrum
from cloudreg.datasets.solids import first_ellipsoid, smooth_minimum, smoothstep, superellipsoid
from cloudreg.datasets.structures import Structure as S
from cloudreg.datasets.structures import Tissue as T

LENGTH_MM, HEIGHT_MM, HALF_WIDTH_MM = 13.3, 7.8, 5.6
"""Extent of the brain: all of it lies at 0 < a < length, 0 < d < height, s < half width."""

_JIT = {"cache": True, "nogil": True, "fastmath": True}

# As `cerebrum.NUCLEI`.
_HINDBRAIN = np.array(
    [
        (S.FOURTH_VENTRICLE, T.FLUID, 10.9, 4.72, 0.0, 1.2, 0.2, 0.75, 6),
        (S.CEREBELLAR_NUCLEI, T.NUCLEUS, 10.75, 4.0, 1.0, 0.45, 0.3, 0.75, 0),
        (S.PYRAMIDAL_TRACT, T.WHITE, 10.4, 6.85, 0.42, 2.6, 0.16, 0.3, 1),
        (S.INFERIOR_OLIVE, T.DENSE_CELLS, 11.6, 6.55, 0.38, 0.75, 0.2, 0.33, 0),
        (S.TRIGEMINAL, T.WHITE, 11.2, 5.6, 1.62, 1.7, 0.42, 0.14, 4),
        (S.TRIGEMINAL, T.NUCLEUS, 11.2, 5.6, 1.35, 1.7, 0.45, 0.4, 4),
        (S.PONS, T.NUCLEUS, 9.4, 6.45, 0.5, 0.7, 0.4, 0.55, 0),
    ],
    dtype=np.float64,
)


@njit(**_JIT)
def _cerebellum(a, d, s, depth):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Folded sheet around the arbor vitae; fissures are radial planes seen from the cerebellar nuclei."""
    u, v = a - 10.75, d - 4.0
    radius = math.hypot(u, v)
    phi = math.atan2(u, -v) + 0.10 * math.sin(2.1 * s) + 0.06 * math.sin(5 * radius)
    folds = 8.0 if s < 1.0 else 7.0
    wave = abs(math.sin(0.5 * folds * phi))
    reach = 0.75 if math.sin(folds * 0.5 * phi + 0.4) * math.sin(1.3 * phi) > -0.2 else 1.15
    fissure = math.hypot(wave * radius * 2.0 / folds, max(0.0, reach - radius))
    surface = smooth_minimum(depth, fissure, 0.15)
    vermis = s < 0.95 + 0.08 * math.sin(3 * a)
    structure = S.VERMIS.value if vermis else S.CEREBELLAR_HEMISPHERE.value
    if surface < 0.022:
        return 0, 0
    if surface < 0.2:
        return structure, T.MOLECULAR.value
    if surface < 0.42:
        return structure, T.GRANULAR.value
    return S.ARBOR_VITAE.value, T.WHITE.value


@njit(**_JIT)
def _olfactory_bulb(depth, a):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if depth < 0.16:
        return T.GLOMERULI.value
    if depth < 0.38:
        return T.MOLECULAR.value
    if depth < 0.45:
        return T.DENSE_CELLS.value
    if depth < 0.78:
        return T.GRANULAR.value
    return T.WHITE.value if a > 1.2 else T.GRANULAR.value


@njit(**_JIT)
def classify(a, d, s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the structure and the tissue at a point.

    Parameters
    ----------
    a, d, s
        Millimetres backward from the olfactory bulbs, downward from the top, sideward from the midplane.

    Returns
    -------
    structure, tissue
        Values of `Structure` and `Tissue`; (0, 0) outside the brain.
    """
    s = abs(s)
    if a < 0 or a > LENGTH_MM or d < 0 or d > HEIGHT_MM or s > HALF_WIDTH_MM:
        return 0, 0
    # A gentle warp takes the geometry out of the solids.
    a0, d0 = a, d
    a = a0 + 0.09 * math.sin(1.6 * d0 + 0.4 * s) + 0.05 * math.sin(2.3 * s)
    d = d0 + 0.07 * math.sin(1.25 * a0 + 0.9 * s)
    s = s * (1 + 0.02 * math.sin(1.8 * a0 + 1.1 * d0))

    taper = 1 + 0.095 * max(0.0, 7.0 - a)
    back = a + 0.95 * smoothstep(s, 2.6, 0.3) * smoothstep(a, 7.2, 9.6)
    half_height = 3.25 if d < 3.9 else 2.75
    hull = superellipsoid(back - 6.25, d - 3.9, 0.85 + (s - 0.85) * taper, 4.25, half_height, 4.95, 2.5)
    if hull > 0:
        return cerebrum(a, d, s, hull)

    if a < 4.5:
        bulb = superellipsoid(a - 1.75, d - 3.9, s - 0.95, 1.65, 1.35, 0.9, 2.2)
        if bulb > 0 and hull < -0.03:
            return S.OLFACTORY_BULB.value, _olfactory_bulb(bulb, a)
        peduncle = superellipsoid(a - 3.0, d - 4.4, s - 1.05, 1.3, 0.95, 0.9, 2.0)
        if peduncle > 0:
            return S.OLFACTORY_NUCLEUS.value, (T.LAYER_23.value if peduncle > 0.2 else T.LAYER_1.value)
        return 0, 0

    cerebellum = superellipsoid(a - 11.15, d - 2.85, s, 1.7, 2.0, 2.75, 2.3)
    flocculus = superellipsoid(a - 10.7, d - 4.2, s - 2.85, 0.65, 0.75, 0.8, 2.0)
    cerebellum = max(cerebellum, flocculus)
    row = first_ellipsoid(_HINDBRAIN, a, d, s)
    if row >= 0:
        return int(_HINDBRAIN[row, 0]), int(_HINDBRAIN[row, 1])
    row = first_ellipsoid(NUCLEI, a, d, s)
    if row >= 0 and hull < -0.02:
        return int(NUCLEI[row, 0]), int(NUCLEI[row, 1])
    stem = superellipsoid(a - 11.2, d - 5.75, s, 2.6, 1.25 - 0.1 * (a - 11.2), 1.9 - 0.22 * (a - 11.2), 2.6)
    if cerebellum > 0 and stem < 0 and hull < -0.06:
        return _cerebellum(a, d, s, cerebellum)
    pons = superellipsoid(a - 9.5, d - 6.05, s, 1.3, 1.05, 1.75, 2.4)
    if pons > 0:
        return S.PONS.value, (T.WHITE.value if pons < 0.14 and d > 6.2 else T.BRAINSTEM.value)
    if stem > 0:
        return S.MEDULLA.value, (T.WHITE.value if stem < 0.1 else T.BRAINSTEM.value)
    tectum = superellipsoid(a - 9.4, d - 4.2, s, 1.25, 1.9, 1.8, 2.4)
    if tectum > 0:
        return S.MIDBRAIN.value, T.BRAINSTEM.value
    return 0, 0


@njit(**_JIT)
def classify_grid(structures, tissues, start, step):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Fill uint8 arrays (z, y, x) for axes that run backward, downward, sideward.

    Parameters
    ----------
    structures, tissues
        Filled in place.
    start, step
        Millimetres of the first voxel centre, and between voxel centres; z y x.
    """
    for i in range(structures.shape[0]):
        for j in range(structures.shape[1]):
            for k in range(structures.shape[2]):
                structures[i, j, k], tissues[i, j, k] = classify(
                    start[0] + i * step[0], start[1] + j * step[1], start[2] + k * step[2]
                )
