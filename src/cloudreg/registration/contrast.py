"""The map from atlas grey to target grey: a polynomial that varies slowly over the target.

Spec: coefficients minimise the weighted squared error of matching voxels. Around each node of a coarse grid they are
fitted to the voxels near it, weighted by a Gaussian, with a ridge that pulls toward the fit over the whole brain, so
that where little is observed the contrast is that of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.backend import Field, backend_of

_RIDGE = 0.02
"""Weight of the brain-wide fit, as a fraction of the mean number of voxels at a node."""


_TISSUE = 0.1
"""Atlas grey, between background (0) and bright tissue (1), above which a voxel counts as tissue."""


@dataclass(frozen=True)
class Contrast:
    """Polynomial coefficients on a grid over the target.

    Parameters
    ----------
    coefficients
        (z, y, x, order + 1) float32, of increasing powers of the standardised atlas value; on any device.
    to_nodes
        (3, 2): node index = scale * target voxel index + offset, per axis.
    scale
        (centre, 1 / spread, lowest, highest, tissue) of the atlas values; outside lowest to highest the polynomial is
        constant, for nothing was seen there; values above the last are tissue.
    """

    coefficients: Field
    to_nodes: NDArray[np.float64]
    scale: NDArray[np.float32]

    @property
    def order(self) -> int:
        """Degree of the polynomial."""
        return int(self.coefficients.shape[3]) - 1

    def on_nodes(self, shape: tuple[int, int, int], step: NDArray[np.float64]) -> Contrast:
        """Return the same contrast on nodes ``step`` voxels apart over a target of ``shape``.

        Coefficients come from the mean of the present ones: the next refit makes them local.
        """
        count = np.maximum(2, np.ceil((np.asarray(shape) - 1) / step).astype(int) + 1)
        # The nodes are centred on the target.
        offset = ((count - 1) - (np.asarray(shape) - 1) / step) / 2
        mean = self.fetched().coefficients.mean(axis=(0, 1, 2))
        nodes = np.broadcast_to(mean, (*count, mean.size))
        return replace(self, coefficients=np.ascontiguousarray(nodes), to_nodes=np.stack([1 / step, offset], axis=1))

    def fetched(self) -> Contrast:
        """Return the same contrast in the main memory."""
        return replace(self, coefficients=backend_of(self.coefficients).fetch(self.coefficients))

    def refitted(self, moments: Field, smoothing: NDArray[np.float64] | None) -> Contrast:
        """Return the contrast that fits the moments summed by `cloudreg.registration.kernels.evaluate`.

        Parameters
        ----------
        moments
            (z, y, x, 3 order + 2) float64, on any device; the coefficients will be on the same.
        smoothing
            Standard deviation of the Gaussian around each node, in nodes; None for one fit to the whole brain.
        """
        order = self.order
        backend = backend_of(moments)
        xp = backend.xp
        total = backend.fetch(xp.sum(moments, axis=(0, 1, 2)))
        if total[0] <= 0:
            return self
        overall, matrix = _solve(total, order)
        coefficients = xp.zeros_like(moments[..., : order + 1])
        coefficients[...] = backend.send(overall)
        if smoothing is not None:
            local = backend.smoothed(moments, smoothing.tolist(), "constant", 3.0)
            occupied = local[..., 0]
            ridge = _RIDGE * float(occupied[occupied > 0.1 * float(occupied.max())].mean())
            pull = ridge * matrix / total[0]
            # Far from tissue the brain-wide fit is all there is.
            busy = occupied > 1e-3 * ridge
            columns = local[busy]
            near = [xp.asarray(columns[:, k], copy=True) for k in range(columns.shape[1])]
            matrices = [[near[i + j] + pull[i, j] for j in range(i + 1)] for i in range(order + 1)]
            right = [one + own for one, own in zip(near[2 * order + 1 :], pull @ overall, strict=True)]
            coefficients[busy] = xp.stack(_solve_each(matrices, right), axis=-1)
        return replace(self, coefficients=xp.astype(coefficients, xp.float32))


def initial_contrast(atlas_values: NDArray[np.float32], order: int, target_levels: tuple[float, float]) -> Contrast:
    """Return a linear contrast that takes the atlas's background and bright tissue to the target's.

    Parameters
    ----------
    atlas_values
        Sample of the atlas inside and around the brain.
    order
        Degree of the polynomial, whose higher coefficients start at 0.
    target_levels
        Target grey of background and of bright tissue.
    """
    low, high = float(atlas_values.min()), float(atlas_values.max())
    centre, spread = float(atlas_values.mean()), float(atlas_values.std())
    lowest, highest = (low - centre) / spread, (high - centre) / spread
    bright = (float(np.quantile(atlas_values, 0.9)) - centre) / spread
    slope = (target_levels[1] - target_levels[0]) / (bright - lowest)
    coefficients = np.zeros((2, 2, 2, order + 1), dtype=np.float32)
    coefficients[..., 0] = target_levels[0] - slope * lowest
    coefficients[..., 1] = slope
    scale = np.array([centre, 1 / spread, lowest, highest, _TISSUE], dtype=np.float32)
    return Contrast(coefficients, np.zeros((3, 2)), scale)


def _hankel(moments: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    index = np.add.outer(np.arange(order + 1), np.arange(order + 1))
    return np.asarray(moments[..., index])


def _solve_each(matrices: Sequence[Sequence[Field]], right: Sequence[Field]) -> list[Field]:
    """Solve symmetric positive systems by Cholesky's method, all n at once.

    A library's loop over matrices as small as these spends its time between them.

    Parameters
    ----------
    matrices
        Row by row, fields of n elements; no more than the lower triangles are read.
    right
        The right sides' components, likewise.
    """
    lower: list[list[Field]] = []
    solved: list[Field] = []
    for row, side in zip(matrices, right, strict=True):
        own: list[Field] = []
        for above, element in zip(lower, row, strict=False):
            own.append(_less(element, own, above) / above[-1])
        own.append(_less(row[len(own)], own, own) ** 0.5)
        lower.append(own)
        solved.append(_less(side, own, solved) / own[-1])
    for i in reversed(range(len(lower))):
        below = range(i + 1, len(lower))
        solved[i] = _less(solved[i], [lower[k][i] for k in below], [solved[k] for k in below]) / lower[i][i]
    return solved


def _less(start: Field, a: Sequence[Field], b: Sequence[Field]) -> Field:
    """Return ``start`` less the products of the a and b, as far as both go."""
    for one, other in zip(a, b, strict=False):
        start = start - one * other
    return start


def _solve(moments: NDArray[np.float64], order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coefficients that fit one set of moments, and their (slightly ridged) normal matrix."""
    matrix = _hankel(moments, order)
    # Just enough to be solvable where fewer grey values were seen than there are coefficients.
    matrix = matrix + 1e-6 * np.trace(matrix) / (order + 1) * np.eye(order + 1)
    return np.linalg.solve(matrix, moments[2 * order + 1 :]), matrix
