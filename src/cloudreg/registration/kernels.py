"""The hot loops over target voxels.

For a target voxel y with grey value J and data weight W, the model predicts ``F(I(x + u(x)))`` with ``x = B y`` in
atlas space, u the displacement of the inverse map on the velocity grid, I the atlas as a cubic spline and F a
polynomial whose coefficients vary slowly over the target. J is explained as that (plus noise), as an artifact or as
background (Tward et al., Front. Neurosci. 14:52, 2020). `evaluate` computes the marginal objective and what the
contrast and the mixture are re-estimated from; `linearize` computes the objective's derivatives for a Gauss-Newton
step.

Voxels are visited in a fixed number of runs, each with its own sums, which are added in order: results do not depend
on the number of threads. Each run goes row by row through the stages of `cloudreg.registration.rows`. The runs are
plain loops in Python's threads: loops that numba spreads over threads itself take several times as long to compile.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.rows import (
    LOOP,
    add_moments,
    add_statistics,
    add_to_affine,
    add_to_nodes,
    contrast_of_row,
    empty_row,
    find_pull,
    judge,
    length_of_row,
    locate,
    nearest,
    predict,
    sample,
    sample_with_slopes,
)

RUNS = 8
"""Runs of voxels with sums of their own."""


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def _in_runs(loop: Callable[..., Any], active: NDArray[np.int64], *arguments: object) -> list[Any]:
    """Call ``loop`` on each run of the active voxels."""
    bounds = [active.size * run // RUNS for run in range(RUNS + 1)]
    parts = [active[a:b] for a, b in itertools.pairwise(bounds)]
    return list(_threads().map(lambda part: loop(part, *arguments), parts))


def evaluate(
    target: NDArray[np.float32],
    weight: NDArray[np.float32],
    active: NDArray[np.int64],
    *model: Any,
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Sum the marginal objective, the mixture's statistics and the contrast's moments.

    Parameters
    ----------
    target, weight
        (z, y, x) float32: grey values and data weights.
    active
        Flat indices of the voxels to visit, ascending.
    *model
        In this order:

        atlas, outside
            Spline coefficients of the atlas (`spline_coefficients`) and its value outside.
        u
            (z, y, x, 3) float32 displacement of the inverse map on the velocity grid, um.
        to_velocity, to_atlas
            (3, 4) float64: from a target voxel index to the index on the velocity grid (its voxel size in a fifth
            column) and on the padded atlas.
        um_to_atlas
            (3, 3) float64: from a displacement in um to one in atlas voxels.
        c, to_contrast
            (z, y, x, order + 1) float32 polynomial coefficients and (3, 2) scale and offset from target index to
            theirs.
        scale
            (centre, 1 / spread, lowest, highest, tissue): the atlas value is centred, scaled and clamped before the
            polynomial; above the last it is tissue.
        m
            `cloudreg.registration.mixture.Mixture.packed`.

    Returns
    -------
    objective : float
        Minus the weighted sum of log likelihoods.
    statistics : ndarray, shape (8,)
        Sums of weight x (match, match e^2, artifact, artifact J, background, background J, artifact J^2,
        background J^2). The first two are over
        tissue only: the noise of an empty background, which is most of many volumes, says nothing about how well
        two brains can match.
    moments : ndarray, shape (z, y, x, 3 order + 2) on the contrast grid
        Sums of w t^k for k to 2 order, then of w t^k J for k to order, w = weight x posterior of match.
    """
    model = _padded(*model)
    sums, moments = zip(*_in_runs(_evaluate, active, target, weight, *model), strict=True)
    total = _added(sums)
    c = model[6]
    return float(total[0]), total[1:], _joined(moments, (*c.shape[:3], 3 * c.shape[3] - 1))


def linearize(
    target: NDArray[np.float32],
    weight: NDArray[np.float32],
    active: NDArray[np.int64],
    *model: Any,
    affine: bool = True,
) -> tuple[float, NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Sum the derivatives of the marginal objective for one Gauss-Newton step.

    Parameters
    ----------
    target, weight, active, *model
        As for `evaluate`.
    affine
        Sum the derivatives by the affine too; they are 0 otherwise.

    Returns
    -------
    objective : float
        As from `evaluate`.
    gradient : ndarray, shape (z, y, x, 3)
        Derivative by the displacement at each node of the velocity grid, per um.
    hessian : ndarray, shape (z, y, x, 6)
        Lumped Gauss-Newton Hessian at each node: zz, zy, zx, yy, yx, xx.
    affine_gradient, affine_hessian : ndarray, shapes (12,) and (12, 12)
        By the rows of the 3 x 4 matrix that takes a target voxel index to atlas um.
    """
    model = _padded(*model)
    runs = _in_runs(_linearize, active, affine, target, weight, *model)
    objectives, nodes, gradients, halves = zip(*runs, strict=True)
    joined = _joined(nodes, (*model[2].shape[:3], 9))
    upper = _added(halves)
    hessian = upper + np.triu(upper, 1).T
    return (
        float(_added(objectives)),
        np.ascontiguousarray(joined[..., :3]),
        joined[..., 3:],
        _added(gradients),
        hessian,
    )


def explain(target: NDArray[np.float32], *model: Any) -> NDArray[np.float32]:
    """Return what the model says about every voxel: (4, z, y, x), see `cloudreg.registration.solver.Explanation`.

    Parameters
    ----------
    target, *model
        As for `evaluate`.
    """
    model = _padded(*model)
    maps = np.empty((4, *target.shape), dtype=np.float32)
    _in_runs(_explain, np.arange(target.size), target, *model, maps)
    return maps


def _padded(atlas: Any, outside: Any, u: NDArray[np.float32], *model: Any) -> tuple[Any, ...]:
    """Return the model with vectors of four: these are read at once."""
    return atlas, outside, np.pad(u, [(0, 0)] * 3 + [(0, 1)]), *model


def _joined(slabs: Sequence[tuple[int, NDArray[Any]]], shape: tuple[int, ...]) -> NDArray[Any]:
    """Add slabs of nodes, each from a z on, into a grid of all nodes."""
    total = np.zeros(shape, dtype=slabs[0][1].dtype)
    for first, slab in slabs:
        total[first : first + len(slab)] += slab
    return total


def _added(parts: Sequence[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@njit(**LOOP)
def _evaluate(active, target, weight, atlas, outside, u, to_velocity, to_atlas, um_to_atlas, c, to_contrast, scale, m):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`evaluate` of one run: the objective and the statistics, and the moments of nodes from the z that is returned."""
    _, ny, nx = target.shape
    greys, weights = target.reshape(-1), weight.reshape(-1)
    sums = np.zeros(9)
    first, last = _nodes_of(active, target.shape, to_contrast[0, 0], 0.0, 0.0, to_contrast[0, 1] + 0.5, c.shape[0])
    moments = np.zeros((last - first + 1, c.shape[1], c.shape[2], 3 * c.shape[3] - 1))
    near = np.empty((c.shape[2], c.shape[3]), np.float32)
    row = empty_row(nx)
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active, item, x, nx)
        j, w = greys[flat : flat + n], weights[flat : flat + n]
        locate(n, z, y, x, u, to_velocity, to_atlas, um_to_atlas, row)
        sample(n, atlas, outside, row)
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, to_contrast, scale, row)
        judge(n, j, m, row)
        add_statistics(n, j, w, scale[4], row, sums)
        z_node = nearest(to_contrast[0, 0] * z + to_contrast[0, 1], c.shape[0])
        y_node = nearest(to_contrast[1, 0] * y + to_contrast[1, 1], c.shape[1])
        add_moments(n, x, j, w, to_contrast, row, moments[z_node - first, y_node])
        item += n
    return sums, (first, moments)


@njit(**LOOP)
def _linearize(  # type: ignore[no-untyped-def]  # noqa: ANN202
    active,  # noqa: ANN001
    affine,  # noqa: ANN001
    target,  # noqa: ANN001
    weight,  # noqa: ANN001
    atlas,  # noqa: ANN001
    outside,  # noqa: ANN001
    u,  # noqa: ANN001
    to_velocity,  # noqa: ANN001
    to_atlas,  # noqa: ANN001
    um_to_atlas,  # noqa: ANN001
    c,  # noqa: ANN001
    to_contrast,  # noqa: ANN001
    scale,  # noqa: ANN001
    m,  # noqa: ANN001
):
    """`linearize` of one run: gradient and Hessian at nodes from the z that is returned, the affine's Hessian half."""
    _, ny, nx = target.shape
    greys, weights = target.reshape(-1), weight.reshape(-1)
    data = 0.0
    v = to_velocity
    first, last = _nodes_of(active, target.shape, v[0, 0], v[0, 1], v[0, 2], v[0, 3], u.shape[0])
    nodes = np.zeros((min(last + 2, u.shape[0]) - first, u.shape[1], u.shape[2], 9), dtype=np.float32)
    affine_gradient = np.zeros(12)
    affine_hessian = np.zeros((12, 12))
    near = np.empty((c.shape[2], c.shape[3]), np.float32)
    row = empty_row(nx)
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active, item, x, nx)
        j, w = greys[flat : flat + n], weights[flat : flat + n]
        locate(n, z, y, x, u, to_velocity, to_atlas, um_to_atlas, row)
        sample_with_slopes(n, atlas, outside, row)
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, to_contrast, scale, row)
        judge(n, j, m, row)
        for i in range(n):
            data -= w[i] * row.posterior[3, i]
        find_pull(n, j, w, scale, um_to_atlas, 2 * m[1], row)
        add_to_nodes(n, z, y, x, u.shape[0], to_velocity, first, row, nodes)
        if affine:
            add_to_affine(n, z, y, x, u, to_velocity, row, affine_gradient, affine_hessian)
        item += n
    return data, (first, nodes), affine_gradient, affine_hessian


@njit(**LOOP)
def _explain(active, target, atlas, outside, u, to_velocity, to_atlas, um_to_atlas, c, to_contrast, scale, m, maps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`explain` of one run, into ``maps``."""
    _, ny, nx = target.shape
    greys, found = target.reshape(-1), maps.reshape((4, -1))
    near = np.empty((c.shape[2], c.shape[3]), np.float32)
    row = empty_row(nx)
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active, item, x, nx)
        locate(n, z, y, x, u, to_velocity, to_atlas, um_to_atlas, row)
        sample(n, atlas, outside, row)
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, to_contrast, scale, row)
        judge(n, greys[flat : flat + n], m, row)
        for i in range(n):
            found[0, flat + i] = row.atlas[0, i]
            found[1, flat + i] = row.predicted[i]
            found[2, flat + i] = row.posterior[0, i]
            found[3, flat + i] = row.posterior[1, i]
        item += n


@njit(**LOOP)
def _nodes_of(active, shape, dz, dy, dx, offset, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """First and last lower node, along a grid's z, of all voxels between the first and the last active one's z."""
    _, ny, nx = shape
    if active.size == 0:
        return 0, 0
    a, b = dz * (active[0] // (ny * nx)), dz * (active[-1] // (ny * nx))
    low = min(a, b) + min(0.0, dy * (ny - 1)) + min(0.0, dx * (nx - 1)) + offset
    high = max(a, b) + max(0.0, dy * (ny - 1)) + max(0.0, dx * (nx - 1)) + offset
    return min(max(int(low), 0), count - 2), min(max(int(high), 0), count - 1)
