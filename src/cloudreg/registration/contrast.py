"""The map from atlas grey to target grey: a polynomial that varies slowly over the target.

Spec: coefficients minimise the weighted squared error of matching voxels. Around each node of a coarse grid they are
fitted to the voxels near it, weighted by a Gaussian, with a ridge that pulls toward the fit over the whole brain, so
that where little is observed the contrast is that of the brain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
        (z, y, x, order + 1) float32, of increasing powers of the standardised atlas value.
    to_nodes
        (3, 2): node index = scale * target voxel index + offset, per axis.
    scale
        (centre, 1 / spread, lowest, highest, tissue) of the atlas values; outside lowest to highest the polynomial is
        constant, for nothing was seen there; values above the last are tissue.
    """

    coefficients: NDArray[np.float32]
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
        mean = self.coefficients.mean(axis=(0, 1, 2))
        nodes = np.broadcast_to(mean, (*count, mean.size))
        return replace(self, coefficients=np.ascontiguousarray(nodes), to_nodes=np.stack([1 / step, offset], axis=1))

    def refitted(self, moments: NDArray[np.float64], smoothing: NDArray[np.float64] | None) -> Contrast:
        """Return the contrast that fits the moments summed by `cloudreg.registration.kernels.evaluate`.

        Parameters
        ----------
        moments
            (z, y, x, 3 order + 2).
        smoothing
            Standard deviation of the Gaussian around each node, in nodes; None for one fit to the whole brain.
        """
        from scipy.ndimage import gaussian_filter1d

        order = self.order
        total = moments.sum(axis=(0, 1, 2))
        if total[0] <= 0:
            return self
        overall, matrix = _solve(total, order)
        if smoothing is None:
            coefficients = np.broadcast_to(overall, self.coefficients.shape)
        else:
            local = moments
            for axis in range(3):
                local = gaussian_filter1d(local, smoothing[axis], axis=axis, mode="constant", truncate=3)
            occupied = local[..., 0]
            ridge = _RIDGE * float(occupied[occupied > 0.1 * occupied.max()].mean())
            pull = ridge * matrix / total[0]
            # Far from tissue the brain-wide fit is all there is.
            busy = occupied > 1e-3 * ridge
            near = np.ascontiguousarray(local[busy].T)
            coefficients = np.empty(self.coefficients.shape)
            coefficients[...] = overall
            right = near[2 * order + 1 :] + (pull @ overall)[:, None]
            coefficients[busy] = _solve_each(_hankel(near.T, order).T + pull[..., None], right).T
        return replace(self, coefficients=np.ascontiguousarray(coefficients, dtype=np.float32))


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


def _solve_each(matrices: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve symmetric positive systems (k, k, n) for (k, n) by Cholesky's method, all n at once.

    A library's loop over matrices as small as these spends its time between them.
    """
    count = len(matrices)
    lower = np.zeros_like(matrices)
    solved = right.copy()
    for i in range(count):
        for j in range(i + 1):
            rest = matrices[i, j] - (lower[i, :j] * lower[j, :j]).sum(axis=0)
            lower[i, j] = np.sqrt(rest) if i == j else rest / lower[j, j]
        solved[i] = (solved[i] - (lower[i, :i] * solved[:i]).sum(axis=0)) / lower[i, i]
    for i in reversed(range(count)):
        solved[i] = (solved[i] - (lower[i + 1 :, i] * solved[i + 1 :]).sum(axis=0)) / lower[i, i]
    return solved


def _solve(moments: NDArray[np.float64], order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coefficients that fit one set of moments, and their (slightly ridged) normal matrix."""
    matrix = _hankel(moments, order)
    # Just enough to be solvable where fewer grey values were seen than there are coefficients.
    matrix = matrix + 1e-6 * np.trace(matrix) / (order + 1) * np.eye(order + 1)
    return np.linalg.solve(matrix, moments[2 * order + 1 :]), matrix
