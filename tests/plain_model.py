"""What a fit says about every voxel, in plain array operations: what the kernels are tested against."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cloudreg.registration.levels import Level
from cloudreg.registration.solver import Fit
from cloudreg.space import Grid


@dataclass(frozen=True)
class Explanation:
    """Voxel by voxel, on the level's target grid.

    Parameters
    ----------
    atlas
        Atlas value (normalised) pulled to the target.
    predicted
        The target grey that the model expects of matching tissue.
    match, artifact, background
        Posteriors of the three classes.
    log_likelihood
        Logarithm of the mixture's density.
    """

    atlas: NDArray[np.float32]
    predicted: NDArray[np.float32]
    match: NDArray[np.float32]
    artifact: NDArray[np.float32]
    background: NDArray[np.float32]
    log_likelihood: NDArray[np.float64]


def explain(level: Level, velocity_grid: Grid, fit: Fit) -> Explanation:
    """Evaluate the first pair's model at every voxel of the level's target, slab by slab."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        planes = range(level.target.grid.shape[0])
        slabs = list(threads.map(lambda z: _explain_slab(level, velocity_grid, fit, z), planes))
    return Explanation(*(np.stack(parts) for parts in zip(*slabs, strict=True)))


def _explain_slab(level: Level, velocity_grid: Grid, fit: Fit, z: int) -> tuple[NDArray[np.floating], ...]:
    _, ny, nx = level.target.grid.shape
    index = np.stack(np.meshgrid([z], np.arange(ny), np.arange(nx), indexing="ij"), axis=-1).reshape(-1, 3)
    um = level.target.grid.index_to_um(index)
    straight = um @ fit.to_atlas[:3, :3].T + fit.to_atlas[:3, 3]
    at_node = velocity_grid.um_to_index(straight).T
    displacement = np.stack(
        [map_coordinates(fit.flow.displacement[..., k], at_node, order=1, mode="nearest") for k in range(3)], axis=1
    )
    at_voxel = level.atlas_grid.um_to_index(straight + displacement).T
    size = np.asarray(level.atlas.shape)[:, None]
    inside = ((at_voxel >= 1) & (at_voxel < size - 2)).all(axis=0)
    value = np.full(len(index), float(level.outside))
    # The kernels read four coefficients a side and no more, so "nearest" is never reached.
    value[inside] = map_coordinates(level.atlas, at_voxel[:, inside], order=3, prefilter=False, mode="nearest")
    centre, scale, lowest, highest, _ = (float(v) for v in fit.contrast.scale)
    t = np.clip((value - centre) * scale, lowest, highest)
    contrast = fit.contrast
    at_contrast = (index * contrast.to_nodes[:, 0] + contrast.to_nodes[:, 1]).T
    predicted = np.zeros(len(index))
    for k in range(contrast.order, -1, -1):
        predicted = predicted * t + map_coordinates(contrast.coefficients[..., k], at_contrast, order=1, mode="nearest")
    grey = level.target.values[z].ravel().astype(float)
    m = fit.mixture
    likelihoods = [
        prior * np.exp(-0.5 * ((grey - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        for prior, mean, sigma in zip(
            m.priors,
            (predicted, m.artifact, m.background),
            (m.sigma_match, m.sigma_artifact, m.sigma_background),
            strict=True,
        )
    ]
    total = sum(likelihoods) + 1e-12
    maps = [value, predicted, *(k / total for k in likelihoods)]
    return *(a.reshape(ny, nx).astype(np.float32) for a in maps), np.log(total).reshape(ny, nx)
