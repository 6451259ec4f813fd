"""Inside the cerebral hemispheres: cortex layered by depth, white matter, the curled hippocampus, and the nuclei.

Coordinates as in `cloudreg.datasets.anatomy`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cloudreg.datasets.solids import first_ellipsoid, smooth_minimum, smoothstep
from cloudreg.datasets.structures import Structure as S
from cloudreg.datasets.structures import Tissue as T

_JIT = {"cache": True, "nogil": True, "fastmath": True}

# Solid nuclei and tracts as ellipsoids, in the order in which they are asked: structure, tissue, centre (a, d, s),
# radii (a, d, s), and the angle in degrees by which the a axis is tilted down.
NUCLEI = np.array(
    [
        (S.THALAMUS_MEDIAL, T.NEUROPIL, 7.2, 4.3, 0.0, 0.55, 0.45, 0.3, 0),
        (S.THIRD_VENTRICLE, T.FLUID, 7.2, 4.9, 0.0, 1.5, 1.7, 0.09, 0),
        (S.FOURTH_VENTRICLE, T.FLUID, 9.5, 3.95, 0.0, 1.5, 0.13, 0.13, 12),
        (S.ANTERIOR_COMMISSURE, T.WHITE, 5.35, 5.0, 0.0, 0.17, 0.17, 1.9, 0),
        (S.ANTERIOR_COMMISSURE, T.WHITE, 4.0, 4.75, 1.15, 1.6, 0.16, 0.2, -8),
        (S.HABENULA, T.DENSE_CELLS, 7.0, 3.1, 0.32, 0.5, 0.26, 0.24, 10),
        (S.CAPSULE, T.WHITE, 7.0, 4.6, 2.05, 0.9, 1.5, 0.17, 25),
        (S.CAPSULE, T.WHITE, 8.2, 5.75, 1.35, 1.0, 0.2, 0.5, 14),
        (S.OPTIC_TRACT, T.WHITE, 6.3, 6.62, 0.3, 0.5, 0.14, 0.75, 0),
        (S.OPTIC_TRACT, T.WHITE, 7.2, 6.1, 1.75, 0.9, 0.16, 0.22, -35),
        (S.SUBSTANTIA_NIGRA, T.NUCLEUS, 8.5, 5.4, 1.45, 0.65, 0.22, 0.62, 12),
        (S.PERIAQUEDUCTAL_GREY, T.NEUROPIL, 9.2, 3.85, 0.0, 1.2, 0.62, 0.62, 12),
        (S.SUPERIOR_COLLICULUS, T.COLLICULUS, 9.15, 2.85, 0.7, 0.95, 0.75, 1.2, 8),
        (S.INFERIOR_COLLICULUS, T.NUCLEUS, 9.95, 2.75, 1.05, 0.62, 0.85, 0.95, 20),
        (S.THALAMUS_MEDIAL, T.THALAMUS, 7.25, 4.15, 0.0, 1.2, 1.15, 0.95, 0),
        (S.THALAMUS_LATERAL, T.NUCLEUS, 7.45, 4.1, 0.85, 1.3, 1.05, 1.4, 0),
        (S.HYPOTHALAMUS, T.HYPOTHALAMUS, 6.75, 5.95, 0.0, 1.75, 0.95, 1.35, 4),
        (S.PALLIDUM, T.PALLIDUM, 6.05, 4.55, 2.3, 0.75, 0.75, 0.55, 0),
        (S.ACCUMBENS, T.NEUROPIL, 4.35, 5.25, 1.25, 0.85, 0.75, 0.75, 0),
        (S.CAUDOPUTAMEN, T.STRIATUM, 5.55, 3.95, 2.4, 2.05, 1.6, 1.35, 12),
        (S.AMYGDALA, T.DENSE_CELLS, 7.0, 5.25, 2.95, 0.45, 0.45, 0.28, 0),
        (S.AMYGDALA, T.NUCLEUS, 7.05, 5.4, 2.7, 0.95, 0.75, 0.85, 0),
    ],
    dtype=np.float64,
)


@njit(**_JIT)
def _cortical_layer(depth):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Tissue at a depth, as a fraction of the thickness of the cortex."""
    if depth < 0.12:
        return T.LAYER_1.value
    if depth < 0.40:
        return T.LAYER_23.value
    if depth < 0.54:
        return T.LAYER_4.value
    if depth < 0.78:
        return T.LAYER_5.value
    return T.LAYER_6.value


@njit(**_JIT)
def _cortical_area(a, d, s, angle, fraction):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Area at a place of the cortical sheet; ``angle`` is 0 at the top and pi at the bottom."""
    deep = 1 if fraction > 0.54 else 0
    if angle > 1.9 - 0.25 * smoothstep(a, 8.0, 6.0):
        return S.ENTORHINAL.value if a > 7.9 else (S.PIRIFORM.value if a > 3.5 else S.ORBITAL.value)
    if a < 4.3 and d > 3.5 + 0.5 * (a - 3.5):
        return S.ORBITAL.value
    if s < 0.95 + 0.1 * math.sin(1.3 * a):
        return S.CINGULATE.value if a < 6.6 else S.RETROSPLENIAL.value
    if a > 8.6 and angle > 1.35:
        return S.ENTORHINAL.value
    if a > 7.6 + 0.3 * math.sin(2 * angle) and angle < 1.0:
        return S.VISUAL_UPPER.value + deep
    if a > 6.7 and angle > 1.0:
        return S.AUDITORY_UPPER.value + deep
    if angle > 1.4:
        return S.INSULAR.value
    if a < 5.7 - 2.4 * smoothstep(angle, 0.3, 1.15):
        return S.MOTOR_UPPER.value + deep
    return S.SOMATOSENSORY_UPPER.value + deep


@njit(**_JIT)
def _hippocampus(a, d, s, depth):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return structure and tissue of the sheet below the white matter, or (0, 0).

    The sheet is unrolled to ``x`` (from the midplane sideward) and ``depth``. There CA1 bends back into CA3, whose end
    lies in the mouth of the dentate gyrus: two interlocking letters U.
    """
    angle = math.atan2(s, 4.1 - d)
    start = 0.28 + 1.7 * smoothstep(a, 7.9, 8.9)
    end = 2.5 + 2.9 * smoothstep(a, 6.9, 8.7)
    x = angle * 2.3 - start
    length = end - start
    medial = 0.25 + 1.0 * smoothstep(d, 2.9, 3.9) * smoothstep(a, 7.4, 8.2)
    if a < 6.25 or a > 9.55 or x < 0 or x > length or s < medial:
        return 0, 0
    taper = math.sqrt(max(0.0, 1 - abs(2 * x / length - 1) ** 5))
    thick = 1.3 * smoothstep(a, 6.15, 7.1) * smoothstep(a, 9.6, 8.8) * taper
    if depth > thick:
        return 0, 0
    if depth < 0.06 + 0.1 * smoothstep(x / length, 0.6, 0.95):
        return (S.LATERAL_VENTRICLE.value, T.FLUID.value) if x > 0.45 * length else (S.CALLOSUM.value, T.WHITE.value)
    if x > 0.9 * length and a < 7.9:
        return S.FIMBRIA.value, T.WHITE.value
    h = depth / thick
    y = h * 1.3
    # Dentate gyrus: a U that opens to the side.
    along = min(max(x, 0.2 * length + 0.2), 0.62 * length)
    ring = math.hypot(x - along, y - 0.9)
    if x < 0.66 * length and ring < 0.36:
        if abs(ring - 0.22) < 0.055 and x < 0.6 * length:
            return S.DENTATE_GYRUS.value, T.DENSE_CELLS.value
        if ring >= 0.16 or x < 0.45 * length:
            return S.DENTATE_GYRUS.value, T.NEUROPIL.value
        return S.CA3.value, (T.DENSE_CELLS.value if abs(y - 0.9) < 0.05 else T.NEUROPIL.value)
    if x < 0.13 * length + 0.5 * smoothstep(a, 8.3, 9.2):
        return S.SUBICULUM.value, (T.LAYER_5.value if 0.25 < y < 0.55 else T.NEUROPIL.value)
    # Cornu ammonis: a U that opens to the midplane.
    along = min(x, length - 0.75)
    ring = math.hypot(x - along, y - 0.62)
    structure = S.CA3.value if x > 0.74 * length or (y > 0.62 and x > 0.6 * length) else S.CA1.value
    if abs(ring - 0.29) < (0.05 if structure == S.CA1.value else 0.075) and (y < 0.62 or x > 0.55 * length):
        return structure, T.DENSE_CELLS.value
    return structure, T.NEUROPIL.value


@njit(**_JIT)
def cerebrum(a, d, s, depth):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Structure and tissue of a point inside the hull of the hemispheres."""
    angle = math.atan2(s, 4.1 - d)
    thickness = 1.2 - 0.4 * smoothstep(d, 2.4, 5.2) + 0.5 * smoothstep(a, 4.2, 2.8)
    white = 0.27 * smoothstep(a, 3.3, 4.4) * (1 - 0.45 * smoothstep(d, 2.8, 5.0))
    covered = angle < 2.22 + 0.25 * smoothstep(a, 7.0, 8.5) and (a < 8.3 or d < 6.2)
    if covered and depth < thickness:
        # The medial wall of each hemisphere is cortex too.
        below = smooth_minimum(depth, s - 0.01, 0.3)
        if below < 0.02:
            return 0, 0
        fraction = below / thickness
        structure = _cortical_area(a, d, s, angle, fraction)
        if structure == S.PIRIFORM.value or structure == S.ENTORHINAL.value:
            dense = 0.28 < fraction < 0.46
            tissue = T.DENSE_CELLS.value if dense and structure == S.PIRIFORM.value else _cortical_layer(fraction)
            return structure, (T.LAYER_23.value if tissue == T.LAYER_4.value else tissue)
        return structure, _cortical_layer(fraction)
    if covered and depth < thickness + white:
        return S.CALLOSUM.value, T.WHITE.value
    if covered:
        below = depth - thickness - white
        structure, tissue = _hippocampus(a, d, s, below)
        if structure:
            return structure, tissue
        if 4.3 < a < 6.5:
            wall = s - 0.74 - 0.05 * d
            body = 0.10 + 0.10 * smoothstep(s, 1.2, 0.8)
            if (below < body and 0.35 < s < 2.1) or (abs(wall) < 0.09 and d < 4.3):
                return S.LATERAL_VENTRICLE.value, T.FLUID.value
            if wall < 0 and d < 4.75 - 0.9 * smoothstep(a, 5.5, 6.5):
                return S.SEPTUM.value, T.NEUROPIL.value
    row = first_ellipsoid(NUCLEI, a, d, s)
    if row >= 0:
        return int(NUCLEI[row, 0]), int(NUCLEI[row, 1])
    if a < 3.9:
        return S.OLFACTORY_NUCLEUS.value, (T.LAYER_23.value if depth > 0.2 else T.LAYER_1.value)
    if a < 5.7 and d > 5.4:
        return S.OLFACTORY_TUBERCLE.value, (T.DENSE_CELLS.value if 0.24 < depth < 0.38 else T.NEUROPIL.value)
    if a > 7.9:
        return S.MIDBRAIN.value, T.BRAINSTEM.value
    if d < 4.9 or a > 7.4:
        return S.CAPSULE.value, T.WHITE.value
    return S.BASAL_FOREBRAIN.value, T.PALLIDUM.value
