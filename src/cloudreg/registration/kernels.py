"""The hot loops over target voxels.

For a target voxel y with grey value J and data weight W, the model predicts ``F(I(x + u(x)))`` with ``x = B y`` in
atlas space, u the displacement of the inverse map on the velocity grid, I the atlas as a cubic spline and F a
polynomial whose coefficients vary slowly over the target. J is explained as that (plus noise), as an artifact or as
background (Tward et al., Front. Neurosci. 14:52, 2020). `evaluate` computes the marginal objective and what the
contrast and the mixture are re-estimated from; `linearize` computes the objective's derivatives for a Gauss-Newton
step.

Voxels are visited in a fixed number of runs, each with its own sums, which are added in order: results do not depend
on the number of threads. The runs are plain loops in Python's threads: loops that numba spreads over threads itself
take several times as long to compile.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.sampling import VALUE_KEEPING, cell, spline_value, spline_with_gradient, vector_at

RUNS = 8
"""Runs of voxels with sums of their own."""

_LOOP = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING}
_INLINE = {**_LOOP, "inline": "always"}


@njit(**_INLINE)
def _posterior(j, predicted, m):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Likelihood and the posteriors of matching, artifact and background."""
    e = np.float64(j - predicted)
    a = np.float64(j) - m[6]
    b = np.float64(j) - m[7]
    match = m[0] * math.exp(-e * e * m[1])
    artifact = m[2] * math.exp(-a * a * m[3])
    background = m[4] * math.exp(-b * b * m[5])
    # The floor keeps a voxel that nothing explains finite; it pulls no more than a clear artifact does.
    total = match + artifact + background + 1e-12
    return total, match / total, artifact / total, background / total


@njit(**_INLINE)
def _affine(m, z, y, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Apply a (3, 4) matrix to an index."""
    return (
        m[0, 0] * z + m[0, 1] * y + m[0, 2] * x + m[0, 3],
        m[1, 0] * z + m[1, 1] * y + m[1, 2] * x + m[1, 3],
        m[2, 0] * z + m[2, 1] * y + m[2, 2] * x + m[2, 3],
    )


@njit(**_INLINE)
def _atlas_index(u, pz, py, px, to_atlas, um_to_atlas, z, y, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Where target voxel (z, y, x), at velocity-grid index p, lies in the padded atlas."""
    uz, uy, ux = vector_at(u, pz, py, px)
    az, ay, ax = _affine(to_atlas, z, y, x)
    return (
        az + um_to_atlas[0, 0] * uz + um_to_atlas[0, 1] * uy + um_to_atlas[0, 2] * ux,
        ay + um_to_atlas[1, 0] * uz + um_to_atlas[1, 1] * uy + um_to_atlas[1, 2] * ux,
        ax + um_to_atlas[2, 0] * uz + um_to_atlas[2, 1] * uy + um_to_atlas[2, 2] * ux,
    )


@njit(**_INLINE)
def _polynomial(c, cz, cy, cx, t):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Contrast F(t) and F'(t) with coefficients interpolated at a contrast-grid index."""
    iz, fz, _ = cell(cz, c.shape[0])
    iy, fy, _ = cell(cy, c.shape[1])
    ix, fx, _ = cell(cx, c.shape[2])
    one = np.float32(1)
    value = np.float32(0)
    slope = np.float32(0)
    for k in range(c.shape[3] - 1, -1, -1):
        near = (one - fy) * ((one - fx) * c[iz, iy, ix, k] + fx * c[iz, iy, ix + 1, k]) + fy * (
            (one - fx) * c[iz, iy + 1, ix, k] + fx * c[iz, iy + 1, ix + 1, k]
        )
        far = (one - fy) * ((one - fx) * c[iz + 1, iy, ix, k] + fx * c[iz + 1, iy, ix + 1, k]) + fy * (
            (one - fx) * c[iz + 1, iy + 1, ix, k] + fx * c[iz + 1, iy + 1, ix + 1, k]
        )
        slope = slope * t + value
        value = value * t + (one - fz) * near + fz * far
    return value, slope


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
    *model: object,
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
    runs = _in_runs(_evaluate, active, target, weight, *model)
    sums, moments = (_added(parts) for parts in zip(*runs, strict=True))
    return float(sums[0]), sums[1:], moments


def linearize(
    target: NDArray[np.float32],
    weight: NDArray[np.float32],
    active: NDArray[np.int64],
    *model: object,
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
    runs = _in_runs(_linearize, active, affine, target, weight, *model)
    objective, nodes, gradient, upper = (_added(parts) for parts in zip(*runs, strict=True))
    hessian = upper + np.triu(upper, 1).T
    return float(objective), np.ascontiguousarray(nodes[..., :3]), nodes[..., 3:], gradient, hessian


def _added(parts: tuple[Any, ...]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@njit(**_LOOP)
def _evaluate(active, target, weight, atlas, outside, u, to_velocity, to_atlas, um_to_atlas, c, to_contrast, scale, m):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`evaluate` of one run: the objective and the statistics in one array, and the moments."""
    _, ny, nx = target.shape
    order = c.shape[3] - 1
    sums = np.zeros(9)
    moments = np.zeros((c.shape[0], c.shape[1], c.shape[2], 3 * order + 2))
    x = -1
    y = 0
    z = 0
    before = np.int64(-2)
    for item in range(active.size):
        flat = active[item]
        x += 1
        # Active voxels come in rows; a division takes longer than many multiplications.
        if flat != before + 1 or x == nx:
            x = flat % nx
            row = flat // nx
            y = row % ny
            z = row // ny
        before = flat
        j = target[z, y, x]
        w = np.float64(weight[z, y, x])
        pz, py, px = _affine(to_velocity, z, y, x)
        az, ay, ax = _atlas_index(u, pz, py, px, to_atlas, um_to_atlas, z, y, x)
        value = spline_value(atlas, az, ay, ax, outside)
        t = np.float32(min(max((value - scale[0]) * scale[1], scale[2]), scale[3]))
        cz = to_contrast[0, 0] * z + to_contrast[0, 1]
        cy = to_contrast[1, 0] * y + to_contrast[1, 1]
        cx = to_contrast[2, 0] * x + to_contrast[2, 1]
        predicted, _ = _polynomial(c, cz, cy, cx, t)
        total, match, artifact, background = _posterior(j, predicted, m)
        e = np.float64(j - predicted)
        sums[0] -= w * math.log(total)
        if value > scale[4]:
            sums[1] += w * match
            sums[2] += w * match * e * e
        sums[3] += w * artifact
        sums[4] += w * artifact * j
        sums[5] += w * background
        sums[6] += w * background * j
        sums[7] += w * artifact * j * j
        sums[8] += w * background * j * j
        node = moments[
            min(max(int(cz + 0.5), 0), moments.shape[0] - 1),
            min(max(int(cy + 0.5), 0), moments.shape[1] - 1),
            min(max(int(cx + 0.5), 0), moments.shape[2] - 1),
        ]
        power = w * match
        for k in range(order + 1):
            node[k] += power
            node[2 * order + 1 + k] += power * j
            power *= t
        for k in range(order + 1, 2 * order + 1):
            node[k] += power
            power *= t
    return sums, moments


@njit(**_LOOP)
def _linearize(active, affine, target, weight, *model):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
    """`linearize` of one run: gradient and Hessian at each node in one array of 9, the affine's Hessian half."""
    atlas, outside, u, to_velocity, to_atlas, um_to_atlas, c, to_contrast, scale, m = model
    _, ny, nx = target.shape
    nodes = np.zeros((u.shape[0], u.shape[1], u.shape[2], 9), dtype=np.float32)
    curvature = 2 * m[1]
    data = 0.0
    d = np.zeros(12)
    affine_gradient = np.zeros(12)
    affine_hessian = np.zeros((12, 12))
    f = np.zeros(9, dtype=np.float32)
    x = -1
    y = 0
    z = 0
    before = np.int64(-2)
    for item in range(active.size):
        flat = active[item]
        x += 1
        if flat != before + 1 or x == nx:
            x = flat % nx
            row = flat // nx
            y = row % ny
            z = row // ny
        before = flat
        j = target[z, y, x]
        pz, py, px = _affine(to_velocity, z, y, x)
        az, ay, ax = _atlas_index(u, pz, py, px, to_atlas, um_to_atlas, z, y, x)
        value, dz, dy, dx = spline_with_gradient(atlas, az, ay, ax, outside)
        t = np.float32(min(max((value - scale[0]) * scale[1], scale[2]), scale[3]))
        cz = to_contrast[0, 0] * z + to_contrast[0, 1]
        cy = to_contrast[1, 0] * y + to_contrast[1, 1]
        cx = to_contrast[2, 0] * x + to_contrast[2, 1]
        predicted, slope = _polynomial(c, cz, cy, cx, t)
        total, match, _, _ = _posterior(j, predicted, m)
        data -= weight[z, y, x] * math.log(total)
        if t == scale[2] or t == scale[3] or (dz == 0 and dy == 0 and dx == 0):
            continue
        slope *= np.float32(scale[1])
        # Gradient of the prediction by position, per um.
        qz = slope * np.float32(um_to_atlas[0, 0] * dz + um_to_atlas[1, 0] * dy + um_to_atlas[2, 0] * dx)
        qy = slope * np.float32(um_to_atlas[0, 1] * dz + um_to_atlas[1, 1] * dy + um_to_atlas[2, 1] * dx)
        qx = slope * np.float32(um_to_atlas[0, 2] * dz + um_to_atlas[1, 2] * dy + um_to_atlas[2, 2] * dx)
        stiffness = np.float32(weight[z, y, x] * match * curvature)
        force = stiffness * np.float32(predicted - j)
        f[0] = force * qz
        f[1] = force * qy
        f[2] = force * qx
        f[3] = stiffness * qz * qz
        f[4] = stiffness * qz * qy
        f[5] = stiffness * qz * qx
        f[6] = stiffness * qy * qy
        f[7] = stiffness * qy * qx
        f[8] = stiffness * qx * qx
        iz, fz, free_z = cell(pz, u.shape[0])
        iy, fy, free_y = cell(py, u.shape[1])
        ix, fx, free_x = cell(px, u.shape[2])
        one = np.float32(1)
        for corner in range(8):
            oz, oy, ox = corner >> 2, (corner >> 1) & 1, corner & 1
            s = (fz if oz else one - fz) * (fy if oy else one - fy) * (fx if ox else one - fx)
            node = nodes[iz + oz, iy + oy, ix + ox]
            for k in range(9):
                node[k] += s * f[k]
        if not affine:
            continue
        # The affine moves x in x + u(x): the prediction changes by q (id + Du) dx.
        rz = np.float64(qz)
        ry = np.float64(qy)
        rx = np.float64(qx)
        sz = (
            qz * _slope_z(u, iz, iy, ix, fy, fx, 0)
            + qy * _slope_z(u, iz, iy, ix, fy, fx, 1)
            + qx * _slope_z(u, iz, iy, ix, fy, fx, 2)
        )
        sy = (
            qz * _slope_y(u, iz, iy, ix, fz, fx, 0)
            + qy * _slope_y(u, iz, iy, ix, fz, fx, 1)
            + qx * _slope_y(u, iz, iy, ix, fz, fx, 2)
        )
        sx = (
            qz * _slope_x(u, iz, iy, ix, fz, fy, 0)
            + qy * _slope_x(u, iz, iy, ix, fz, fy, 1)
            + qx * _slope_x(u, iz, iy, ix, fz, fy, 2)
        )
        rz += free_z * sz / to_velocity[0, 4]
        ry += free_y * sy / to_velocity[1, 4]
        rx += free_x * sx / to_velocity[2, 4]
        d[0] = rz * z
        d[1] = rz * y
        d[2] = rz * x
        d[3] = rz
        d[4] = ry * z
        d[5] = ry * y
        d[6] = ry * x
        d[7] = ry
        d[8] = rx * z
        d[9] = rx * y
        d[10] = rx * x
        d[11] = rx
        residual = np.float64(predicted - j)
        for a in range(12):
            scaled = stiffness * d[a]
            affine_gradient[a] += scaled * residual
            for b in range(a, 12):
                affine_hessian[a, b] += scaled * d[b]
    return data, nodes, affine_gradient, affine_hessian


@njit(**_INLINE)
def _slope_z(u, iz, iy, ix, fy, fx, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    one = np.float32(1)
    a, b = u[iz, iy], u[iz + 1, iy]
    c, d = u[iz, iy + 1], u[iz + 1, iy + 1]
    return (one - fy) * ((one - fx) * (b[ix, k] - a[ix, k]) + fx * (b[ix + 1, k] - a[ix + 1, k])) + fy * (
        (one - fx) * (d[ix, k] - c[ix, k]) + fx * (d[ix + 1, k] - c[ix + 1, k])
    )


@njit(**_INLINE)
def _slope_y(u, iz, iy, ix, fz, fx, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    one = np.float32(1)
    a, b = u[iz, iy], u[iz, iy + 1]
    c, d = u[iz + 1, iy], u[iz + 1, iy + 1]
    return (one - fz) * ((one - fx) * (b[ix, k] - a[ix, k]) + fx * (b[ix + 1, k] - a[ix + 1, k])) + fz * (
        (one - fx) * (d[ix, k] - c[ix, k]) + fx * (d[ix + 1, k] - c[ix + 1, k])
    )


@njit(**_INLINE)
def _slope_x(u, iz, iy, ix, fz, fy, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    one = np.float32(1)
    a, b = u[iz, iy], u[iz, iy + 1]
    c, d = u[iz + 1, iy], u[iz + 1, iy + 1]
    return (one - fz) * ((one - fy) * (a[ix + 1, k] - a[ix, k]) + fy * (b[ix + 1, k] - b[ix, k])) + fz * (
        (one - fy) * (c[ix + 1, k] - c[ix, k]) + fy * (d[ix + 1, k] - d[ix, k])
    )
