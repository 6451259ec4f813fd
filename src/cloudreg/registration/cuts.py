"""Brains that are not whole: flat faces where tissue was cut off, and what lies beyond them.

Air beyond a cut looks like the air around a brain, but there it means "nobody knows", not "no tissue". A knife leaves
a plane, and a brain's own surface has few of them: the faces that are flat are found first, and the registration then
tries whether the target is explained better when what lies beyond them has no weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.levels import Image
from cloudreg.space import Grid

_FLAT = 0.42
"""Share of the rays from one side that must first meet tissue at one plane, to be tried as a cut. Whole mouse brains
reach 0.4, cuts 0.5 to 0.9; a flat side that is no cut costs only the trial."""

_TOLERANCE = 1.0
"""Voxels that a face may be off its plane."""

_STEEPEST = np.tan(np.deg2rad(40))
"""A face turned farther than this from an axis is seen better from another side."""

_TRIALS = 300


@dataclass(frozen=True)
class Cut:
    """A plane at which the tissue ends.

    Parameters
    ----------
    normal
        Unit vector (z, y, x) in target space that points away from the tissue.
    offset_um
        Points y of the plane have ``normal . y = offset_um``.
    inward_um
        How far from the plane to stop: the face itself is half tissue.
    flatness
        Share of the face that lies on the plane, 0 to 1.
    """

    normal: NDArray[np.float64]
    offset_um: float
    inward_um: float
    flatness: float

    def beyond(self, grid: Grid) -> NDArray[np.bool_]:
        """Return which voxels of a grid, (z, y, x), tell nothing: those beyond the plane or just before it."""
        # normal . (A i + t) is a sum of one number per index.
        slope = self.normal @ grid.affine[:3, :3]
        start = float(self.normal @ grid.affine[:3, 3])
        z, y, x = (slope[k] * np.arange(n) for k, n in enumerate(grid.shape))
        return np.asarray(start + z[:, None, None] + y[:, None] + x > self.offset_um - self.inward_um)

    def describe(self) -> str:
        """Return where the plane is, for messages."""
        axis = int(np.argmax(np.abs(self.normal)))
        return f"the {'high' if self.normal[axis] > 0 else 'low'} end of axis {'zyx'[axis]}"


def flat_faces(image: Image) -> list[Cut]:
    """Return the sides of the target at which its tissue ends at a plane, the flattest first.

    Parameters
    ----------
    image
        Normalised target, at a resolution that shows its surface (some 60 voxels along the brain).

    Notes
    -----
    Rays along the three axes, from both ends, meet the tissue at a depth; the plane through most of those points is
    sought among planes through three of them (Fischler and Bolles, CACM 24:381-395, 1981). Faces at the volume's own
    border are no evidence: nothing was imaged beyond them.
    """
    tissue = image.foreground
    faces = []
    for axis in range(3):
        for high in (False, True):
            seen = np.moveaxis(tissue, axis, 0)
            seen = seen[::-1] if high else seen
            hit = seen.any(axis=0)
            if np.count_nonzero(hit) < 50:
                continue
            depth = np.argmax(seen, axis=0)[hit].astype(float)
            if np.mean(depth == 0) > 0.5:
                continue
            found = _plane(np.argwhere(hit).astype(float), depth)
            if found is None or found[1] < _FLAT:
                continue
            faces.append(_cut(image.grid, axis, high, *found))
    return sorted(faces, key=lambda cut: -cut.flatness)


def _plane(at: NDArray[np.float64], depth: NDArray[np.float64]) -> tuple[NDArray[np.floating], float] | None:
    """Return (constant, two slopes) of the plane nearest to most depths, and the share of them that it meets."""
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(len(at)), at])
    best: NDArray[np.floating] | None = None
    most = 0
    for _ in range(_TRIALS):
        three = rng.choice(len(at), 3, replace=False)
        if abs(np.linalg.det(design[three])) < 20:
            continue
        plane = np.linalg.solve(design[three], depth[three])
        if np.abs(plane[1:]).max() > _STEEPEST:
            continue
        count = int(np.count_nonzero(np.abs(design @ plane - depth) <= _TOLERANCE))
        if count > most:
            best, most = plane, count
    if best is None:
        return None
    for _ in range(3):
        near = np.abs(design @ best - depth) <= _TOLERANCE
        best = np.linalg.lstsq(design[near], depth[near], rcond=None)[0]
    return best, float(np.mean(np.abs(design @ best - depth) <= _TOLERANCE))


def _cut(grid: Grid, axis: int, high: bool, plane: NDArray[np.floating], flatness: float) -> Cut:
    """Take a plane of depths, seen from one side, to target space."""
    others = [k for k in range(3) if k != axis]
    # In index space: index[axis] = constant + slopes . the other two; the last voxel of tissue is on the near side.
    constant, slopes = plane[0], plane[1:]
    if high:
        constant, slopes = grid.shape[axis] - 1 - constant, -slopes
    direction = np.zeros(3)
    direction[axis] = 1.0
    direction[others] = -slopes
    level = constant
    if not high:
        direction, level = -direction, -level
    # direction . index > level: covectors go through the inverse transpose.
    to_index = np.linalg.inv(grid.affine)
    covector = direction @ to_index[:3, :3]
    offset = level - direction @ to_index[:3, 3]
    length = float(np.linalg.norm(covector))
    return Cut(covector / length, offset / length, float(np.linalg.norm(direction)) / length, flatness)
