"""What the hot loops do with one row of target voxels, a stage at a time.

A voxel's way from its place to its share of a sum is long, and each step waits for the last. Done voxel by voxel, a
core has little else to do meanwhile; done stage by stage along a row, the voxels are independent of one another and it
works on several at once. The stages hand on what they found in a `Row`, which stays in the fastest cache. They also
compile once, whichever loops use them.

A row is n voxels from (z, y, x) on, along x. Reads and writes go by flat unsigned indices: numba asks of any other
whether it is negative.
"""

# Numba infers the types: rows are scratch arrays, n, z, y and x integers.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.sampling import VALUE_KEEPING, cell, slopes_at, spline_weights

LOOP = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING}
_STAGE = {**LOOP, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_U = np.uint64


class Row(NamedTuple):
    """What the stages find of each voxel of a row, in arrays of the longest row's length.

    Parameters
    ----------
    place
        (3, n) float64: index in the padded atlas.
    parts
        (n, 12) float32: scratch of the interpolations, four numbers at a time.
    atlas
        (4, n) float32: atlas value, and its derivatives along z, y, x per atlas voxel.
    grey
        (n,) float32: atlas value, scaled and clamped for the polynomial.
    predicted, slope
        (n,) float32: target grey that the contrast predicts, and its derivative by ``grey``.
    posterior
        (4, n) float64: of match, artifact and background, and the logarithm of the mixture's density.
    pull
        (n, 9) float32: derivative of the data term by position, and its Gauss-Newton curvature zz, zy, zx, yy, yx, xx.
    """

    place: NDArray[np.float64]
    parts: NDArray[np.float32]
    atlas: NDArray[np.float32]
    grey: NDArray[np.float32]
    predicted: NDArray[np.float32]
    slope: NDArray[np.float32]
    posterior: NDArray[np.float64]
    pull: NDArray[np.float32]


@njit(**_STAGE)
def empty_row(length):
    """Return a row with room for so many voxels."""
    return Row(
        np.empty((3, length)),
        np.empty((length, 12), np.float32),
        np.empty((4, length), np.float32),
        np.empty(length, np.float32),
        np.empty(length, np.float32),
        np.empty(length, np.float32),
        np.empty((4, length)),
        np.empty((length, 9), np.float32),
    )


@njit(**_STAGE)
def length_of_row(active, item, x, nx):
    """Return how many voxels, from ``active[item]`` at x on, follow one another in its row."""
    n = 1
    most = min(nx - x, active.size - item)
    while n < most and active[item + n] == active[item] + n:
        n += 1
    return n


@njit(**_STAGE)
def locate(n, z, y, x, u, to_velocity, to_atlas, um_to_atlas, row):
    """Find ``place``: B y + u(B y) in atlas voxels, u (z, y, x, 4) with an unused fourth component."""
    nz, ny, nx, _ = u.shape
    flat = u.reshape(-1)
    step_z, step_y, step_x = _U(ny * nx * 4), _U(nx * 4), _U(4)
    parts = row.parts.reshape(-1)
    one = np.float32(1)
    z0 = to_velocity[0, 0] * z + to_velocity[0, 1] * y + to_velocity[0, 3]
    y0 = to_velocity[1, 0] * z + to_velocity[1, 1] * y + to_velocity[1, 3]
    x0 = to_velocity[2, 0] * z + to_velocity[2, 1] * y + to_velocity[2, 3]
    dz, dy, dx = to_velocity[0, 2], to_velocity[1, 2], to_velocity[2, 2]
    for i in range(n):
        iz, fz, _ = cell(z0 + dz * (x + i), nz)
        iy, fy, _ = cell(y0 + dy * (x + i), ny)
        ix, fx, _ = cell(x0 + dx * (x + i), nx)
        gz, gy, gx = one - fz, one - fy, one - fx
        a, b, c, d = gz * gy, gz * fy, fz * gy, fz * fy
        p = _U(iz) * step_z + _U(iy) * step_y + _U(ix) * step_x
        q, r, s = p + step_y, p + step_z, p + step_z + step_y
        m0, m1, m2, m3 = _crossed(flat, p, q, r, s, a, b, c, d)
        n0, n1, n2, n3 = _crossed(flat, p + step_x, q + step_x, r + step_x, s + step_x, a, b, c, d)
        o = _U(4 * i)
        parts[o] = gx * m0 + fx * n0
        parts[o + _U(1)] = gx * m1 + fx * n1
        parts[o + _U(2)] = gx * m2 + fx * n2
        parts[o + _U(3)] = gx * m3 + fx * n3
    for k in range(3):
        start = to_atlas[k, 0] * z + to_atlas[k, 1] * y + to_atlas[k, 3]
        step = to_atlas[k, 2]
        a, b, c = um_to_atlas[k, 0], um_to_atlas[k, 1], um_to_atlas[k, 2]
        place = row.place[k]
        for i in range(n):
            o = _U(4 * i)
            moved = a * parts[o] + b * parts[o + _U(1)] + c * parts[o + _U(2)]
            place[i] = start + step * (x + i) + moved


@njit(**_STAGE, inline="always")
def _crossed(flat, p, q, r, s, a, b, c, d):  # noqa: ANN202
    """Weigh four nodes of four components."""
    one, two, three = _U(1), _U(2), _U(3)
    return (
        a * flat[p] + b * flat[q] + c * flat[r] + d * flat[s],
        a * flat[p + one] + b * flat[q + one] + c * flat[r + one] + d * flat[s + one],
        a * flat[p + two] + b * flat[q + two] + c * flat[r + two] + d * flat[s + two],
        a * flat[p + three] + b * flat[q + three] + c * flat[r + three] + d * flat[s + three],
    )


@njit(**_STAGE)
def sample(n, coefficients, outside, row):
    """Find the value in ``atlas`` at ``place``; ``outside`` where that is outside the spline."""
    nz, ny, nx = coefficients.shape
    flat = coefficients.reshape(-1)
    step_z, step_y = _U(ny * nx), _U(nx)
    parts = row.parts.reshape(-1)
    zero = np.float32(0)
    for i in range(n):
        az, ay, ax = row.place[0, i], row.place[1, i], row.place[2, i]
        o = _U(4 * i)
        if not (az >= 1 and ay >= 1 and ax >= 1 and az < nz - 2 and ay < ny - 2 and ax < nx - 2):
            for k in range(4):
                parts[o + _U(k)] = outside
            continue
        iz, iy, ix = int(az), int(ay), int(ax)
        wz = spline_weights(np.float32(az - iz))
        wy = spline_weights(np.float32(ay - iy))
        corner = _U(iz - 1) * step_z + _U(iy - 1) * step_y + _U(ix - 1)
        v0 = v1 = v2 = v3 = zero
        for k in range(4):
            a0 = a1 = a2 = a3 = zero
            p = corner + _U(k) * step_y
            for j in range(4):
                c0, c1, c2, c3 = flat[p], flat[p + _U(1)], flat[p + _U(2)], flat[p + _U(3)]
                w = wz[j]
                a0 += w * c0
                a1 += w * c1
                a2 += w * c2
                a3 += w * c3
                p += step_z
            w = wy[k]
            v0 += w * a0
            v1 += w * a1
            v2 += w * a2
            v3 += w * a3
        parts[o] = v0
        parts[o + _U(1)] = v1
        parts[o + _U(2)] = v2
        parts[o + _U(3)] = v3
    for i in range(n):
        ax = row.place[2, i]
        w0, w1, w2, w3, _, _, _, _ = spline_weights(np.float32(ax - int(ax)))
        o = _U(4 * i)
        row.atlas[0, i] = w0 * parts[o] + w1 * parts[o + _U(1)] + w2 * parts[o + _U(2)] + w3 * parts[o + _U(3)]


@njit(**_STAGE)
def sample_with_slopes(n, coefficients, outside, row):
    """Find the value and the derivatives in ``atlas`` at ``place``; those are 0 outside."""
    nz, ny, nx = coefficients.shape
    flat = coefficients.reshape(-1)
    step_z, step_y = _U(ny * nx), _U(nx)
    parts = row.parts.reshape(-1)
    zero = np.float32(0)
    for i in range(n):
        az, ay, ax = row.place[0, i], row.place[1, i], row.place[2, i]
        o = _U(12 * i)
        if not (az >= 1 and ay >= 1 and ax >= 1 and az < nz - 2 and ay < ny - 2 and ax < nx - 2):
            for k in range(4):
                parts[o + _U(k)] = outside
            for k in range(4, 12):
                parts[o + _U(k)] = zero
            continue
        iz, iy, ix = int(az), int(ay), int(ax)
        wz = spline_weights(np.float32(az - iz))
        wy = spline_weights(np.float32(ay - iy))
        corner = _U(iz - 1) * step_z + _U(iy - 1) * step_y + _U(ix - 1)
        # Rows along x of the value, of the derivative along y and of that along z.
        v0 = v1 = v2 = v3 = zero
        y0 = y1 = y2 = y3 = zero
        z0 = z1 = z2 = z3 = zero
        for k in range(4):
            a0 = a1 = a2 = a3 = zero
            b0 = b1 = b2 = b3 = zero
            p = corner + _U(k) * step_y
            for j in range(4):
                c0, c1, c2, c3 = flat[p], flat[p + _U(1)], flat[p + _U(2)], flat[p + _U(3)]
                w, d = wz[j], wz[4 + j]
                a0 += w * c0
                a1 += w * c1
                a2 += w * c2
                a3 += w * c3
                b0 += d * c0
                b1 += d * c1
                b2 += d * c2
                b3 += d * c3
                p += step_z
            w, d = wy[k], wy[4 + k]
            v0 += w * a0
            v1 += w * a1
            v2 += w * a2
            v3 += w * a3
            y0 += d * a0
            y1 += d * a1
            y2 += d * a2
            y3 += d * a3
            z0 += w * b0
            z1 += w * b1
            z2 += w * b2
            z3 += w * b3
        parts[o] = v0
        parts[o + _U(1)] = v1
        parts[o + _U(2)] = v2
        parts[o + _U(3)] = v3
        parts[o + _U(4)] = y0
        parts[o + _U(5)] = y1
        parts[o + _U(6)] = y2
        parts[o + _U(7)] = y3
        parts[o + _U(8)] = z0
        parts[o + _U(9)] = z1
        parts[o + _U(10)] = z2
        parts[o + _U(11)] = z3
    for i in range(n):
        ax = row.place[2, i]
        w0, w1, w2, w3, d0, d1, d2, d3 = spline_weights(np.float32(ax - int(ax)))
        o = _U(12 * i)
        v0, v1, v2, v3 = parts[o], parts[o + _U(1)], parts[o + _U(2)], parts[o + _U(3)]
        y0, y1, y2, y3 = parts[o + _U(4)], parts[o + _U(5)], parts[o + _U(6)], parts[o + _U(7)]
        z0, z1, z2, z3 = parts[o + _U(8)], parts[o + _U(9)], parts[o + _U(10)], parts[o + _U(11)]
        row.atlas[0, i] = w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3
        row.atlas[1, i] = w0 * z0 + w1 * z1 + w2 * z2 + w3 * z3
        row.atlas[2, i] = w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
        row.atlas[3, i] = d0 * v0 + d1 * v1 + d2 * v2 + d3 * v3


@njit(**_STAGE)
def contrast_of_row(z, y, c, to_contrast, near):
    """Interpolate the contrast's coefficients along z and y, which stay in a row: ``near`` (x, order + 1)."""
    iz, fz, _ = cell(to_contrast[0, 0] * z + to_contrast[0, 1], c.shape[0])
    iy, fy, _ = cell(to_contrast[1, 0] * y + to_contrast[1, 1], c.shape[1])
    gz, gy = np.float32(1) - fz, np.float32(1) - fy
    for x in range(c.shape[2]):
        for k in range(c.shape[3]):
            near[x, k] = gz * (gy * c[iz, iy, x, k] + fy * c[iz, iy + 1, x, k]) + fz * (
                gy * c[iz + 1, iy, x, k] + fy * c[iz + 1, iy + 1, x, k]
            )


@njit(**_STAGE)
def predict(n, x, near, to_contrast, scale, row):
    """Find ``grey``, ``predicted`` and ``slope`` from the atlas's value."""
    nodes, width = near.shape
    flat = near.reshape(-1)
    centre, spread, lowest, highest = scale[0], scale[1], scale[2], scale[3]
    step, offset = to_contrast[2, 0], to_contrast[2, 1]
    for i in range(n):
        t = min(max((row.atlas[0, i] - centre) * spread, lowest), highest)
        ix, fx, _ = cell(step * (x + i) + offset, nodes)
        gx = np.float32(1) - fx
        p = _U(ix * width)
        q = p + _U(width)
        value = np.float32(0)
        slope = np.float32(0)
        for k in range(width - 1, -1, -1):
            slope = slope * t + value
            value = value * t + (gx * flat[p + _U(k)] + fx * flat[q + _U(k)])
        row.grey[i] = t
        row.predicted[i] = value
        row.slope[i] = slope


@njit(**_STAGE)
def judge(n, target, m, row):
    """Find ``posterior`` of the target's greys under the mixture ``m``."""
    m0, m1, m2, m3, m4, m5, m6, m7 = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]
    posterior = row.posterior
    for i in range(n):
        e = np.float64(target[i] - row.predicted[i])
        a = np.float64(target[i]) - m6
        b = np.float64(target[i]) - m7
        posterior[0, i] = m0 * math.exp(-e * e * m1)
        posterior[1, i] = m2 * math.exp(-a * a * m3)
        posterior[2, i] = m4 * math.exp(-b * b * m5)
    for i in range(n):
        # The floor keeps a voxel that nothing explains finite; it pulls no more than a clear artifact does.
        total = posterior[0, i] + posterior[1, i] + posterior[2, i] + 1e-12
        posterior[0, i] /= total
        posterior[1, i] /= total
        posterior[2, i] /= total
        posterior[3, i] = total
    for i in range(n):
        posterior[3, i] = math.log(posterior[3, i])


@njit(**_STAGE)
def add_statistics(n, target, weight, tissue, row, sums):
    """Add the objective and the mixture's statistics to ``sums`` (9,)."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = 0.0
    for i in range(n):
        j, w = np.float64(target[i]), np.float64(weight[i])
        e = np.float64(target[i] - row.predicted[i])
        match = w * row.posterior[0, i] if row.atlas[0, i] > tissue else 0.0
        artifact = w * row.posterior[1, i]
        background = w * row.posterior[2, i]
        s0 -= w * row.posterior[3, i]
        s1 += match
        s2 += match * e * e
        s3 += artifact
        s4 += artifact * j
        s5 += background
        s6 += background * j
        s7 += artifact * j * j
        s8 += background * j * j
    for k, s in enumerate((s0, s1, s2, s3, s4, s5, s6, s7, s8)):
        sums[k] += s


@njit(**_STAGE)
def add_moments(n, x, target, weight, to_contrast, row, moments):
    """Add the contrast's moments to the nodes (x, 3 order + 2) of the row's z and y."""
    nodes, width = moments.shape
    order = (width - 2) // 3
    flat = moments.reshape(-1)
    step, offset = to_contrast[2, 0], to_contrast[2, 1]
    for i in range(n):
        p = _U(nearest(step * (x + i) + offset, nodes) * width)
        q = p + _U(2 * order + 1)
        power = np.float64(weight[i]) * row.posterior[0, i]
        j, t = np.float64(target[i]), np.float64(row.grey[i])
        for k in range(order + 1):
            flat[p + _U(k)] += power
            flat[q + _U(k)] += power * j
            power *= t
        for k in range(order + 1, 2 * order + 1):
            flat[p + _U(k)] += power
            power *= t


@njit(**_STAGE, inline="always")
def nearest(position, count):
    """Return the node nearest to an index."""
    return min(max(int(position + 0.5), 0), count - 1)


@njit(**_STAGE)
def find_pull(n, target, weight, scale, um_to_atlas, curvature, row):
    """Find ``pull`` from the atlas's derivatives: by position in um."""
    spread, lowest, highest = np.float32(scale[1]), scale[2], scale[3]
    a00, a01, a02 = um_to_atlas[0, 0], um_to_atlas[0, 1], um_to_atlas[0, 2]
    a10, a11, a12 = um_to_atlas[1, 0], um_to_atlas[1, 1], um_to_atlas[1, 2]
    a20, a21, a22 = um_to_atlas[2, 0], um_to_atlas[2, 1], um_to_atlas[2, 2]
    for i in range(n):
        dz, dy, dx = row.atlas[1, i], row.atlas[2, i], row.atlas[3, i]
        clamped = row.grey[i] == lowest or row.grey[i] == highest
        slope = np.float32(0) if clamped else row.slope[i] * spread
        # Gradient of the prediction.
        qz = slope * np.float32(a00 * dz + a10 * dy + a20 * dx)
        qy = slope * np.float32(a01 * dz + a11 * dy + a21 * dx)
        qx = slope * np.float32(a02 * dz + a12 * dy + a22 * dx)
        stiffness = np.float32(weight[i] * row.posterior[0, i] * curvature)
        force = stiffness * (row.predicted[i] - target[i])
        row.pull[i, 0] = force * qz
        row.pull[i, 1] = force * qy
        row.pull[i, 2] = force * qx
        row.pull[i, 3] = stiffness * qz * qz
        row.pull[i, 4] = stiffness * qz * qy
        row.pull[i, 5] = stiffness * qz * qx
        row.pull[i, 6] = stiffness * qy * qy
        row.pull[i, 7] = stiffness * qy * qx
        row.pull[i, 8] = stiffness * qx * qx


@njit(**_STAGE)
def add_to_nodes(n, z, y, x, nz, to_velocity, first, row, nodes):
    """Spread ``pull`` over the nodes of the velocity grid around; ``nodes`` are those of its nz from ``first`` on."""
    _, ny, nx, _ = nodes.shape
    flat = nodes.reshape(-1)
    pull = row.pull.reshape(-1)
    step_z, step_y = _U(ny * nx * 9), _U(nx * 9)
    one = np.float32(1)
    z0 = to_velocity[0, 0] * z + to_velocity[0, 1] * y + to_velocity[0, 3]
    y0 = to_velocity[1, 0] * z + to_velocity[1, 1] * y + to_velocity[1, 3]
    x0 = to_velocity[2, 0] * z + to_velocity[2, 1] * y + to_velocity[2, 3]
    dz, dy, dx = to_velocity[0, 2], to_velocity[1, 2], to_velocity[2, 2]
    for i in range(n):
        iz, fz, _ = cell(z0 + dz * (x + i), nz)
        iy, fy, _ = cell(y0 + dy * (x + i), ny)
        ix, fx, _ = cell(x0 + dx * (x + i), nx)
        o = _U(9 * i)
        f0, f1, f2 = pull[o], pull[o + _U(1)], pull[o + _U(2)]
        f3, f4, f5 = pull[o + _U(3)], pull[o + _U(4)], pull[o + _U(5)]
        f6, f7, f8 = pull[o + _U(6)], pull[o + _U(7)], pull[o + _U(8)]
        lowest = _U(iz - first) * step_z + _U(iy) * step_y + _U(9 * ix)
        for corner in range(8):
            oz, oy, ox = corner >> 2, (corner >> 1) & 1, corner & 1
            s = (fz if oz else one - fz) * (fy if oy else one - fy) * (fx if ox else one - fx)
            p = lowest + _U(oz) * step_z + _U(oy) * step_y + _U(9 * ox)
            # All are computed before the first is stored, so that they may be computed together.
            n0, n1, n2 = flat[p] + s * f0, flat[p + _U(1)] + s * f1, flat[p + _U(2)] + s * f2
            n3, n4, n5 = flat[p + _U(3)] + s * f3, flat[p + _U(4)] + s * f4, flat[p + _U(5)] + s * f5
            n6, n7, n8 = flat[p + _U(6)] + s * f6, flat[p + _U(7)] + s * f7, flat[p + _U(8)] + s * f8
            flat[p] = n0
            flat[p + _U(1)] = n1
            flat[p + _U(2)] = n2
            flat[p + _U(3)] = n3
            flat[p + _U(4)] = n4
            flat[p + _U(5)] = n5
            flat[p + _U(6)] = n6
            flat[p + _U(7)] = n7
            flat[p + _U(8)] = n8


@njit(**_STAGE)
def add_to_affine(n, z, y, x, u, to_velocity, row, gradient, hessian):
    """Add the derivatives by the affine to (12,) and the upper half of (12, 12).

    The affine moves x in x + u(x), so that the prediction changes by q (id + Du) dx. As only x varies in a row, its
    sums by 1, x and x^2 hold all of it.
    """
    nz, ny, nx, _ = u.shape
    force = np.zeros((3, 2))
    stiff = np.zeros((3, 3, 3))
    turn = np.empty((3, 3))
    pull = np.empty(3)
    curved = np.empty((3, 3))
    for i in range(n):
        iz, fz, free_z = cell(
            to_velocity[0, 0] * z + to_velocity[0, 1] * y + to_velocity[0, 3] + to_velocity[0, 2] * (x + i), nz
        )
        iy, fy, free_y = cell(
            to_velocity[1, 0] * z + to_velocity[1, 1] * y + to_velocity[1, 3] + to_velocity[1, 2] * (x + i), ny
        )
        ix, fx, free_x = cell(
            to_velocity[2, 0] * z + to_velocity[2, 1] * y + to_velocity[2, 3] + to_velocity[2, 2] * (x + i), nx
        )
        for k in range(3):
            dz, dy, dx = slopes_at(u, iz, iy, ix, fz, fy, fx, k)
            turn[k, 0] = free_z * dz / to_velocity[0, 4]
            turn[k, 1] = free_y * dy / to_velocity[1, 4]
            turn[k, 2] = free_x * dx / to_velocity[2, 4]
            turn[k, k] += 1
        for k in range(3):
            pull[k] = row.pull[i, k]
        curved[0, 0], curved[0, 1], curved[0, 2] = row.pull[i, 3], row.pull[i, 4], row.pull[i, 5]
        curved[1, 0], curved[1, 1], curved[1, 2] = row.pull[i, 4], row.pull[i, 6], row.pull[i, 7]
        curved[2, 0], curved[2, 1], curved[2, 2] = row.pull[i, 5], row.pull[i, 7], row.pull[i, 8]
        place = float(x + i)
        for a in range(3):
            f = turn[0, a] * pull[0] + turn[1, a] * pull[1] + turn[2, a] * pull[2]
            force[a, 0] += f
            force[a, 1] += f * place
            left0 = turn[0, a] * curved[0, 0] + turn[1, a] * curved[1, 0] + turn[2, a] * curved[2, 0]
            left1 = turn[0, a] * curved[0, 1] + turn[1, a] * curved[1, 1] + turn[2, a] * curved[2, 1]
            left2 = turn[0, a] * curved[0, 2] + turn[1, a] * curved[1, 2] + turn[2, a] * curved[2, 2]
            for b in range(a, 3):
                s = left0 * turn[0, b] + left1 * turn[1, b] + left2 * turn[2, b]
                stiff[a, b, 0] += s
                stiff[a, b, 1] += s * place
                stiff[a, b, 2] += s * place * place
    # Of the index (z, y, x, 1), the power of x and the constant factor.
    power = (0, 0, 1, 0)
    factor = (float(z), float(y), 1.0, 1.0)
    for a in range(3):
        for p in range(4):
            gradient[4 * a + p] += factor[p] * force[a, power[p]]
            for b in range(a, 3):
                for q in range(p if a == b else 0, 4):
                    hessian[4 * a + p, 4 * b + q] += factor[p] * factor[q] * stiff[a, b, power[p] + power[q]]
