"""The hot loops over target voxels.

For a target voxel y with grey value J and data weight W, the model predicts ``F(I(x + u(x)))`` with ``x = B y`` in
atlas space, u the displacement of the inverse map on the velocity grid, I the atlas as a cubic spline and F a
polynomial whose coefficients vary slowly over the target. J is explained as that (plus noise), as an artifact or as
background (Tward et al., Front. Neurosci. 14:52, 2020). `evaluate` computes the marginal objective and what the
contrast and the mixture are re-estimated from; `linearize` computes the objective's derivatives for a Gauss-Newton
step.

Where the voxels lie in the atlas, and what is seen there, is most of the work and is done apart: a step is evaluated
where the next one begins, which differs only in contrast and mixture, so that what `evaluate` saw serves `linearize`.

Voxels are visited in a fixed number of runs, each with its own sums, which are added in order: results do not depend
on the number of threads. Each run goes row by row through the stages of `cloudreg.registration.rows`. The runs are
plain loops in Python's threads: loops that numba spreads over threads itself take several times as long to compile.
"""

# Numba infers the loops' types; mypy asks for those of all else.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.rows import (
    LOOP,
    add_moments,
    add_statistics,
    add_to_affine,
    add_to_nodes,
    affine_derivatives,
    contrast_of_row,
    find_pull,
    judge,
    length_of_row,
    locate,
    nearest,
    predict,
    sample,
)
from cloudreg.registration.threads import together

RUNS = 8
"""Runs of voxels with sums of their own."""


def _in_runs(
    loop: Callable[..., Any], active: NDArray[np.int64], seen: Sequence[NDArray[np.float32]], *arguments: object
) -> list[Any]:
    """Call ``loop`` on each run of the active voxels, and on what these see."""
    return together(lambda part, sees: loop(part, sees, *arguments), _cut(active), seen)


def _cut(active: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    bounds = [active.size * run // RUNS for run in range(RUNS + 1)]
    return [active[a:b] for a, b in itertools.pairwise(bounds)]


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
    place, intensity = model[:6], model[6:]
    c = intensity[0]
    runs = _in_runs(_evaluated, active, _seen(active, target.shape, *place), target, weight, *intensity)
    sums, moments = zip(*runs, strict=True)
    total = _added(sums)
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
    place, intensity = model[:6], model[6:]
    seen = _seen(active, target.shape, *place)
    _, _, u, to_velocity, _, um_to_atlas = place
    field = u, to_velocity, um_to_atlas
    runs = _in_runs(linearize_run, active, seen, affine, target, weight, *field, *intensity)
    objectives, nodes, gradients, hessians = zip(*runs, strict=True)
    joined = _joined(nodes, (*u.shape[:3], 9))
    return (
        float(_added(objectives)),
        np.ascontiguousarray(joined[..., :3]),
        joined[..., 3:],
        _added(gradients),
        _added(hessians),
    )


def explain(target: NDArray[np.float32], *model: Any) -> NDArray[np.float32]:
    """Return what the model says about every voxel: (4, z, y, x), see `cloudreg.registration.solver.Explanation`.

    Parameters
    ----------
    target, *model
        As for `evaluate`.
    """
    place, intensity = model[:6], model[6:]
    maps = np.empty((4, *target.shape), dtype=np.float32)
    look, flat = _looking(target.shape, *place), maps.reshape(4, -1)

    def plane(z: int) -> None:
        # A plane at a time: what all voxels see together would take as much room as the maps.
        size = target[z].size
        voxels = np.arange(z * size, (z + 1) * size)
        _explained(voxels, look(voxels, np.empty((4, size), dtype=np.float32)), target, *intensity, flat)

    together(plane, range(target.shape[0]))
    return maps


class _Look(NamedTuple):
    """What some voxels saw last: in which atlas, from where, and for each run (4, n) as `_look` fills it."""

    atlas: weakref.ref[NDArray[np.float32]]
    u: weakref.ref[NDArray[np.float32]]
    affines: bytes
    seen: list[NDArray[np.float32]]


_last: dict[int, _Look] = {}
"""By the identity of the voxels' indices, for as long as these live."""


def _seen(
    active: NDArray[np.int64],
    shape: tuple[int, ...],
    atlas: NDArray[np.float32],
    outside: np.float32,
    u: NDArray[np.float32],
    *affines: NDArray[np.float64],
) -> list[NDArray[np.float32]]:
    """Return what the active voxels see; when they ask again from the same place, what they saw.

    Images and displacements are not changed once they are made (see `cloudreg.registration.backend.Backend`), so the
    same array is the same field.
    """
    known = _last.get(id(active))
    where = b"".join(affine.tobytes() for affine in affines)
    if known is not None and known.atlas() is atlas and known.u() is u and known.affines == where:
        return known.seen
    parts = _cut(active)
    if known is None:
        weakref.finalize(active, _last.pop, id(active), None)
        room = [np.empty((4, part.size), dtype=np.float32) for part in parts]
    else:
        # What was seen last serves no more; new memory would take longer to get than to fill.
        room = known.seen
        _last[id(active)] = known._replace(affines=b"")
    seen = together(_looking(shape, atlas, outside, u, *affines), parts, room)
    _last[id(active)] = _Look(weakref.ref(atlas), weakref.ref(u), where, seen)
    return seen


def _looking(
    shape: tuple[int, ...],
    atlas: NDArray[np.float32],
    outside: np.float32,
    u: NDArray[np.float32],
    *affines: NDArray[np.float64],
) -> Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]:
    """Return what fills an array (4, n) with what n voxels of a target of ``shape`` see, as `_look` does."""
    # Vectors of four are read at once.
    four = np.pad(u, [(0, 0)] * 3 + [(0, 1)]).reshape(-1)
    coefficients, nx = atlas.reshape(-1), shape[2]

    def look(active: NDArray[np.int64], seen: NDArray[np.float32]) -> NDArray[np.float32]:
        scratch = np.empty(12 * nx, dtype=np.float32), np.empty((3, nx))
        _look(active, shape, coefficients, atlas.shape, outside, four, u.shape[:3], *affines, *scratch, seen)
        return seen

    return look


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


def _evaluated(active: NDArray[np.int64], seen: NDArray[np.float32], target: Any, weight: Any, *intensity: Any) -> Any:
    """`evaluate` of one run: the objective and the statistics, and the moments of nodes from the z that is returned."""
    c, to_contrast, _, _ = intensity
    scale, offset = to_contrast[0].tolist()
    first, last = _nodes_of(active, target.shape, (scale, 0.0, 0.0), offset + 0.5, c.shape[0])
    sums = np.zeros(9)
    moments = np.zeros((last - first + 1, *c.shape[1:3], 3 * c.shape[3] - 1))
    images = target.reshape(-1), weight.reshape(-1), target.shape
    _evaluate(active, seen, *images, *intensity, *_scratch(target, c), first, sums, moments.reshape(-1))
    return sums, (first, moments)


def linearize_run(
    active: NDArray[np.int64],
    seen: NDArray[np.float32],
    affine: bool,
    target: Any,
    weight: Any,
    u: Any,
    to_velocity: NDArray[np.float64],
    um_to_atlas: NDArray[np.float64],
    *intensity: Any,
) -> Any:
    """`linearize` of one run: gradient and Hessian at nodes from the z that is returned."""
    *slopes, offset = to_velocity[0, :4].tolist()
    first, last = _nodes_of(active, target.shape, slopes, offset, u.shape[0])
    nodes = np.zeros((min(last + 2, u.shape[0]) - first, *u.shape[1:3], 9), dtype=np.float32)
    _, ny, nx = target.shape
    images = target.reshape(-1), weight.reshape(-1), target.shape
    scratch = *_scratch(target, intensity[0]), np.empty(9 * nx, dtype=np.float32), np.empty((3, 3))
    row, end = (active[[0, -1]] // nx + (0, 1)).tolist() if affine and active.size else (0, 0)
    sums = np.zeros((end - row, 9, 3))
    data = _linearize(
        active, seen, affine, *images, u, to_velocity, um_to_atlas, *intensity, *scratch, first, nodes.reshape(-1),
        row, sums,
    )  # fmt: skip
    return data, (first, nodes), *affine_derivatives(row, ny, sums)


def _explained(active: NDArray[np.int64], seen: NDArray[np.float32], target: Any, *arguments: Any) -> None:
    """`explain` of one run, into the last argument."""
    *intensity, maps = arguments
    _explain(active, seen, target.reshape(-1), target.shape, *intensity, *_scratch(target, intensity[0]), maps)


def _scratch(target: Any, c: Any) -> tuple[NDArray[Any], ...]:
    """Return room for a row of contrasts, and for what is found of each of a row's voxels."""
    nx = target.shape[2]
    near = np.empty(c.shape[2] * c.shape[3], dtype=np.float32)
    return near, *np.empty((3, nx), dtype=np.float32), np.empty((4, nx))


def _nodes_of(
    active: NDArray[np.int64], shape: tuple[int, ...], slopes: Sequence[float], offset: float, count: int
) -> tuple[int, int]:
    """First and last lower node, along a grid's z, of all voxels between the first and the last active one's z.

    The node's index is offset + slopes . (z, y, x).
    """
    _, ny, nx = shape
    if active.size == 0:
        return 0, 0
    dz, dy, dx = slopes
    a, b = (dz * (int(voxel) // (ny * nx)) for voxel in active[[0, -1]])
    low = min(a, b) + min(0.0, dy * (ny - 1)) + min(0.0, dx * (nx - 1)) + offset
    high = max(a, b) + max(0.0, dy * (ny - 1)) + max(0.0, dx * (nx - 1)) + offset
    return min(max(int(low), 0), count - 2), min(max(int(high), 0), count - 1)


@njit(**LOOP)
def _look(active, shape, coefficients, atlas, outside, u, grid, to_velocity, to_atlas, um_to_atlas, parts, place, seen):  # type: ignore[no-untyped-def]
    """Fill ``seen`` for the active voxels of a target of ``shape``; ``atlas`` and ``grid`` are the fields' shapes."""
    _, ny, nx = shape
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active[item:], x, nx)
        locate(n, z, y, x, u, grid, to_velocity, to_atlas, um_to_atlas, parts, place)
        sample(n, coefficients, atlas, outside, place, parts, seen[:, item : item + n])
        item += n


@njit(**LOOP)
def _evaluate(  # type: ignore[no-untyped-def]
    active, seen, target, weight, shape, c, to_contrast, scale, m,
    near, grey, predicted, rise, posterior, first, sums, moments,
):  # fmt: skip
    """Add to ``sums`` (9,) and ``moments`` (flat, from node z ``first`` on)."""
    _, ny, nx = shape
    cz, cy, cx, width = c.shape
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active[item:], x, nx)
        j, w, value = target[flat : flat + n], weight[flat : flat + n], seen[0, item : item + n]
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, cx, width, to_contrast, scale, value, grey, predicted, rise)
        judge(n, j, m, predicted, posterior)
        add_statistics(n, j, w, scale[4], value, predicted, posterior, sums)
        z_node = nearest(to_contrast[0, 0] * z + to_contrast[0, 1], cz)
        y_node = nearest(to_contrast[1, 0] * y + to_contrast[1, 1], cy)
        begin = ((z_node - first) * cy + y_node) * cx * (3 * width - 1)
        add_moments(n, x, j, w, cx, width - 1, to_contrast, grey, posterior, begin, moments)
        item += n


@njit(**LOOP)
def _linearize(  # type: ignore[no-untyped-def]
    active, seen, affine, target, weight, shape, u, to_velocity, um_to_atlas, c, to_contrast, scale, m,
    near, grey, predicted, rise, posterior, pull, turn, first, nodes, row, sums,
):  # fmt: skip
    """Add to ``nodes`` (flat, from z ``first`` on) and ``sums`` (from ``row`` on), and return the objective."""
    _, ny, nx = shape
    grid = (u.shape[0], u.shape[1], u.shape[2])
    data = 0.0
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active[item:], x, nx)
        j, w = target[flat : flat + n], weight[flat : flat + n]
        value, slopes = seen[0, item : item + n], seen[1:, item : item + n]
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, c.shape[2], c.shape[3], to_contrast, scale, value, grey, predicted, rise)
        judge(n, j, m, predicted, posterior)
        for i in range(n):
            data -= w[i] * posterior[3, i]
        find_pull(n, j, w, scale, um_to_atlas, 2 * m[1], slopes, grey, predicted, rise, posterior, pull)
        add_to_nodes(n, z, y, x, grid, to_velocity, first, pull, nodes)
        if affine:
            add_to_affine(n, z, y, x, u, to_velocity, pull, turn, sums[z * ny + y - row])
        item += n
    return data


@njit(**LOOP)
def _explain(  # type: ignore[no-untyped-def]
    active, seen, target, shape, c, to_contrast, scale, m,
    near, grey, predicted, rise, posterior, maps,
):  # fmt: skip
    """Fill ``maps`` (4, flat) for the active voxels."""
    _, ny, nx = shape
    item = 0
    while item < active.size:
        flat = active[item]
        x, y, z = flat % nx, flat // nx % ny, flat // nx // ny
        n = length_of_row(active[item:], x, nx)
        value = seen[0, item : item + n]
        contrast_of_row(z, y, c, to_contrast, near)
        predict(n, x, near, c.shape[2], c.shape[3], to_contrast, scale, value, grey, predicted, rise)
        judge(n, target[flat : flat + n], m, predicted, posterior)
        for i in range(n):
            maps[0, flat + i] = value[i]
            maps[1, flat + i] = predicted[i]
            maps[2, flat + i] = posterior[0, i]
            maps[3, flat + i] = posterior[1, i]
        item += n
