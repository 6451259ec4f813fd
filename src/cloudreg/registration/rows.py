"""What the hot loops do with one row of target voxels, a stage at a time.

A voxel's way from its place to its share of a sum is long, and each step waits for the last. Done voxel by voxel, a
core has little else to do meanwhile; done stage by stage along a row, the voxels are independent of one another and it
works on several at once. What the stages hand on stays in the fastest cache.

A row is n voxels from (z, y, x) on, along x. Its arrays hold at least n of each of these:

place
    (3, n) float64: index in the padded atlas.
parts
    (12 n,) float32: scratch of the interpolations, twelve numbers a voxel.
value, slopes
    (n,) and (3, n) float32: atlas value, and its derivatives along z, y, x per atlas voxel.
grey
    (n,) float32: atlas value, scaled and clamped for the polynomial.
predicted, rise
    (n,) float32: target grey that the contrast predicts, and its derivative by ``grey``.
posterior
    (4, n) float64: of match, artifact and background, and the logarithm of the mixture's density.
pull
    (9 n,) float32: derivative of the data term by position, and its Gauss-Newton curvature zz, zy, zx, yy, yx, xx.

Reads and writes go by flat unsigned indices: numba asks of any other whether it is negative. And a stage gets its
arrays one by one, flat, and makes none: whatever is packed, made or reshaped is seconds of a first run's compilation.
"""

# Numba infers the types: n, z, y and x are integers.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import itertools
import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.sampling import VALUE_KEEPING, cell, slopes_at, spline_weights

LOOP = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING}
_STAGE = {**LOOP, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_U = np.uint64


@njit(**_STAGE)
def length_of_row(active, x, nx):
    """Return how many of the voxels ``active``, the first of which is at x, follow one another in its row."""
    n = 1
    most = min(nx - x, active.size)
    while n < most and active[n] == active[0] + n:
        n += 1
    return n


@njit(**_STAGE)
def locate(n, z, y, x, u, shape, to_velocity, to_atlas, um_to_atlas, parts, place):
    """Find ``place``: B y + u(B y) in atlas voxels, u (z, y, x, 4) of ``shape`` with an unused fourth component."""
    nz, ny, nx = shape
    step_z, step_y, step_x = _U(ny * nx * 4), _U(nx * 4), _U(4)
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
        m0, m1, m2, m3 = _crossed(u, p, q, r, s, a, b, c, d)
        n0, n1, n2, n3 = _crossed(u, p + step_x, q + step_x, r + step_x, s + step_x, a, b, c, d)
        o = _U(4 * i)
        parts[o] = gx * m0 + fx * n0
        parts[o + _U(1)] = gx * m1 + fx * n1
        parts[o + _U(2)] = gx * m2 + fx * n2
        parts[o + _U(3)] = gx * m3 + fx * n3
    for k in range(3):
        start = to_atlas[k, 0] * z + to_atlas[k, 1] * y + to_atlas[k, 3]
        step = to_atlas[k, 2]
        a, b, c = um_to_atlas[k, 0], um_to_atlas[k, 1], um_to_atlas[k, 2]
        for i in range(n):
            o = _U(4 * i)
            moved = a * parts[o] + b * parts[o + _U(1)] + c * parts[o + _U(2)]
            place[k, i] = start + step * (x + i) + moved


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
def sample(n, coefficients, shape, outside, place, parts, seen):
    """Find the value and the slopes at ``place``; they go to ``seen`` (4, n).

    Outside the spline (z, y, x), of ``shape``, they are ``outside`` and 0.
    """
    nz, ny, nx = shape
    step_z, step_y = _U(ny * nx), _U(nx)
    zero = np.float32(0)
    for i in range(n):
        az, ay, ax = place[0, i], place[1, i], place[2, i]
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
                c0, c1 = coefficients[p], coefficients[p + _U(1)]
                c2, c3 = coefficients[p + _U(2)], coefficients[p + _U(3)]
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
        ax = place[2, i]
        w0, w1, w2, w3, d0, d1, d2, d3 = spline_weights(np.float32(ax - int(ax)))
        o = _U(12 * i)
        v0, v1, v2, v3 = parts[o], parts[o + _U(1)], parts[o + _U(2)], parts[o + _U(3)]
        y0, y1, y2, y3 = parts[o + _U(4)], parts[o + _U(5)], parts[o + _U(6)], parts[o + _U(7)]
        z0, z1, z2, z3 = parts[o + _U(8)], parts[o + _U(9)], parts[o + _U(10)], parts[o + _U(11)]
        seen[0, i] = w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3
        seen[1, i] = w0 * z0 + w1 * z1 + w2 * z2 + w3 * z3
        seen[2, i] = w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
        seen[3, i] = d0 * v0 + d1 * v1 + d2 * v2 + d3 * v3


@njit(**_STAGE)
def contrast_of_row(z, y, c, to_contrast, near):
    """Interpolate the contrast's coefficients along z and y, which stay in a row: ``near`` (x, order + 1), flat."""
    iz, fz, _ = cell(to_contrast[0, 0] * z + to_contrast[0, 1], c.shape[0])
    iy, fy, _ = cell(to_contrast[1, 0] * y + to_contrast[1, 1], c.shape[1])
    gz, gy = np.float32(1) - fz, np.float32(1) - fy
    width = c.shape[3]
    for x in range(c.shape[2]):
        for k in range(width):
            near[x * width + k] = gz * (gy * c[iz, iy, x, k] + fy * c[iz, iy + 1, x, k]) + fz * (
                gy * c[iz + 1, iy, x, k] + fy * c[iz + 1, iy + 1, x, k]
            )


@njit(**_STAGE)
def predict(n, x, near, nodes, width, to_contrast, scale, value, grey, predicted, rise):
    """Find ``grey``, ``predicted`` and ``rise`` from the atlas's value."""
    centre, spread, lowest, highest = scale[0], scale[1], scale[2], scale[3]
    step, offset = to_contrast[2, 0], to_contrast[2, 1]
    for i in range(n):
        t = min(max((value[i] - centre) * spread, lowest), highest)
        ix, fx, _ = cell(step * (x + i) + offset, nodes)
        gx = np.float32(1) - fx
        p = _U(ix * width)
        q = p + _U(width)
        total = np.float32(0)
        slope = np.float32(0)
        for k in range(width - 1, -1, -1):
            slope = slope * t + total
            total = total * t + (gx * near[p + _U(k)] + fx * near[q + _U(k)])
        grey[i] = t
        predicted[i] = total
        rise[i] = slope


@njit(**_STAGE)
def judge(n, target, m, predicted, posterior):
    """Find ``posterior`` of the target's greys under the mixture ``m``."""
    m0, m1, m2, m3, m4, m5, m6, m7 = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]
    for i in range(n):
        e = np.float64(target[i] - predicted[i])
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
def add_statistics(n, target, weight, tissue, value, predicted, posterior, sums):
    """Add the objective and the mixture's statistics to ``sums`` (9,)."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = 0.0
    for i in range(n):
        j, w = np.float64(target[i]), np.float64(weight[i])
        e = np.float64(target[i] - predicted[i])
        match = w * posterior[0, i] if value[i] > tissue else 0.0
        artifact = w * posterior[1, i]
        background = w * posterior[2, i]
        s0 -= w * posterior[3, i]
        s1 += match
        s2 += match * e * e
        s3 += artifact
        s4 += artifact * j
        s5 += background
        s6 += background * j
        s7 += artifact * j * j
        s8 += background * j * j
    sums[0] += s0
    sums[1] += s1
    sums[2] += s2
    sums[3] += s3
    sums[4] += s4
    sums[5] += s5
    sums[6] += s6
    sums[7] += s7
    sums[8] += s8


@njit(**_STAGE)
def add_moments(n, x, target, weight, nodes, order, to_contrast, grey, posterior, first, moments):
    """Add the contrast's moments (x, 3 order + 2) of the row's z and y, which begin at ``first``."""
    width = 3 * order + 2
    step, offset = to_contrast[2, 0], to_contrast[2, 1]
    for i in range(n):
        p = _U(first + nearest(step * (x + i) + offset, nodes) * width)
        q = p + _U(2 * order + 1)
        power = np.float64(weight[i]) * posterior[0, i]
        j, t = np.float64(target[i]), np.float64(grey[i])
        for k in range(order + 1):
            moments[p + _U(k)] += power
            moments[q + _U(k)] += power * j
            power *= t
        for k in range(order + 1, 2 * order + 1):
            moments[p + _U(k)] += power
            power *= t


@njit(**_STAGE, inline="always")
def nearest(position, count):
    """Return the node nearest to an index."""
    return min(max(int(position + 0.5), 0), count - 1)


@njit(**_STAGE)
def find_pull(n, target, weight, scale, um_to_atlas, curvature, slopes, grey, predicted, rise, posterior, pull):
    """Find ``pull`` from the atlas's derivatives: by position in um."""
    spread, lowest, highest = np.float32(scale[1]), scale[2], scale[3]
    a00, a01, a02 = um_to_atlas[0, 0], um_to_atlas[0, 1], um_to_atlas[0, 2]
    a10, a11, a12 = um_to_atlas[1, 0], um_to_atlas[1, 1], um_to_atlas[1, 2]
    a20, a21, a22 = um_to_atlas[2, 0], um_to_atlas[2, 1], um_to_atlas[2, 2]
    for i in range(n):
        dz, dy, dx = slopes[0, i], slopes[1, i], slopes[2, i]
        clamped = grey[i] == lowest or grey[i] == highest
        slope = np.float32(0) if clamped else rise[i] * spread
        # Gradient of the prediction.
        qz = slope * np.float32(a00 * dz + a10 * dy + a20 * dx)
        qy = slope * np.float32(a01 * dz + a11 * dy + a21 * dx)
        qx = slope * np.float32(a02 * dz + a12 * dy + a22 * dx)
        stiffness = np.float32(weight[i] * posterior[0, i] * curvature)
        force = stiffness * (predicted[i] - target[i])
        o = _U(9 * i)
        pull[o] = force * qz
        pull[o + _U(1)] = force * qy
        pull[o + _U(2)] = force * qx
        pull[o + _U(3)] = stiffness * qz * qz
        pull[o + _U(4)] = stiffness * qz * qy
        pull[o + _U(5)] = stiffness * qz * qx
        pull[o + _U(6)] = stiffness * qy * qy
        pull[o + _U(7)] = stiffness * qy * qx
        pull[o + _U(8)] = stiffness * qx * qx


@njit(**_STAGE)
def add_to_nodes(n, z, y, x, shape, to_velocity, first, pull, nodes):
    """Spread ``pull`` over the nodes around, of a grid of ``shape``; ``nodes`` (z, y, x, 9) begin at z ``first``."""
    nz, ny, nx = shape
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
            n0, n1, n2 = nodes[p] + s * f0, nodes[p + _U(1)] + s * f1, nodes[p + _U(2)] + s * f2
            n3, n4, n5 = nodes[p + _U(3)] + s * f3, nodes[p + _U(4)] + s * f4, nodes[p + _U(5)] + s * f5
            n6, n7, n8 = nodes[p + _U(6)] + s * f6, nodes[p + _U(7)] + s * f7, nodes[p + _U(8)] + s * f8
            nodes[p] = n0
            nodes[p + _U(1)] = n1
            nodes[p + _U(2)] = n2
            nodes[p + _U(3)] = n3
            nodes[p + _U(4)] = n4
            nodes[p + _U(5)] = n5
            nodes[p + _U(6)] = n6
            nodes[p + _U(7)] = n7
            nodes[p + _U(8)] = n8


@njit(**_STAGE)
def add_to_affine(n, z, y, x, u, to_velocity, pull, turn, sums):
    """Add what the derivatives by the affine need of the row to ``sums`` (9, 3): see `affine_derivatives`.

    The affine moves x in x + u(x), so that the prediction changes by q (id + Du) dx. ``turn`` (3, 3) is scratch.
    """
    nz, ny, nx, _ = u.shape
    z0 = to_velocity[0, 0] * z + to_velocity[0, 1] * y + to_velocity[0, 3]
    y0 = to_velocity[1, 0] * z + to_velocity[1, 1] * y + to_velocity[1, 3]
    x0 = to_velocity[2, 0] * z + to_velocity[2, 1] * y + to_velocity[2, 3]
    for i in range(n):
        place = float(x + i)
        iz, fz, free_z = cell(z0 + to_velocity[0, 2] * place, nz)
        iy, fy, free_y = cell(y0 + to_velocity[1, 2] * place, ny)
        ix, fx, free_x = cell(x0 + to_velocity[2, 2] * place, nx)
        for k in range(3):
            dz, dy, dx = slopes_at(u, iz, iy, ix, fz, fy, fx, k)
            turn[k, 0] = free_z * dz / to_velocity[0, 4]
            turn[k, 1] = free_y * dy / to_velocity[1, 4]
            turn[k, 2] = free_x * dx / to_velocity[2, 4]
            turn[k, k] += 1
        o = _U(9 * i)
        f0, f1, f2 = pull[o], pull[o + _U(1)], pull[o + _U(2)]
        zz, zy, zx = pull[o + _U(3)], pull[o + _U(4)], pull[o + _U(5)]
        yy, yx, xx = pull[o + _U(6)], pull[o + _U(7)], pull[o + _U(8)]
        pair = 3
        for a in range(3):
            t0, t1, t2 = turn[0, a], turn[1, a], turn[2, a]
            f = t0 * f0 + t1 * f1 + t2 * f2
            sums[a, 0] += f
            sums[a, 1] += f * place
            l0 = t0 * zz + t1 * zy + t2 * zx
            l1 = t0 * zy + t1 * yy + t2 * yx
            l2 = t0 * zx + t1 * yx + t2 * xx
            for b in range(a, 3):
                s = l0 * turn[0, b] + l1 * turn[1, b] + l2 * turn[2, b]
                sums[pair, 0] += s
                sums[pair, 1] += s * place
                sums[pair, 2] += s * place * place
                pair += 1


def affine_derivatives(
    first: int, ny: int, sums: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the derivatives by the affine from what `add_to_affine` left of each row of the target.

    Parameters
    ----------
    first
        Row that ``sums`` begins with: z ny + y.
    ny
        Rows of a plane.
    sums
        (rows, 9, 3) float64: sums times 1, x and x^2 along each row, of the derivatives by atlas position (z, y, x) and
        of their curvature (zz, zy, zx, yy, yx, xx). As only x varies in a row, these hold all of it.

    Returns
    -------
    gradient, hessian : ndarray, shapes (12,) and (12, 12)
        As from `cloudreg.registration.kernels.linearize`.
    """
    z, y = np.divmod(first + np.arange(len(sums)), ny)
    # A column of the matrix counts as often as z, y, x or 1; x is in the sums.
    held = np.stack([z, y, np.ones_like(z), np.ones_like(z)]).astype(float)
    power = (0, 0, 1, 0)
    gradient, hessian = np.zeros((3, 4)), np.zeros((3, 4, 3, 4))
    for p in range(4):
        gradient[:, p] = held[p] @ sums[:, :3, power[p]]
        for q in range(4):
            second = (held[p] * held[q]) @ sums[:, 3:, power[p] + power[q]]
            for (a, b), value in zip(itertools.combinations_with_replacement(range(3), 2), second, strict=True):
                hessian[a, p, b, q] = hessian[b, q, a, p] = value
    return gradient.reshape(12), hessian.reshape(12, 12)
