"""The loops over the nodes of a velocity grid: what a displacement carries where, and back.

Displacements and fields are (z, y, x, 3) float32 in um on one grid, ``spacing`` is its voxel size in um. Interpolation
is trilinear and clamped to the grid. `cloudreg.registration.gpu.kernels` has the same loops for a GPU.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cloudreg.registration.sampling import VALUE_KEEPING, cell, component_at, slopes_at

# One thread: a velocity grid is small, and handing its loops to threads costs more than they take on a busy machine.
_LOOP = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING}


_INVERTED, _INVERSIONS = 1e-5, 200
"""How far off its node, in voxels, an inverse map may be taken back to; and the most tries to get there."""

_SHORTEST = 1 / 64
"""Newton's steps are halved no further. From one cell to the next the slope jumps, and at a face no step of any length
may come nearer: then one that does not is taken."""


@njit(**_LOOP)
def push(u, field, change, field_change, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Derivative of u + field(x + u): change + field_change(x + u) + Dfield(x + u) change."""
    nz, ny, nx, _ = u.shape
    result = np.empty_like(u)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                iz, fz, free_z = cell(z + u[z, y, x, 0] / spacing[0], nz)
                iy, fy, free_y = cell(y + u[z, y, x, 1] / spacing[1], ny)
                ix, fx, free_x = cell(x + u[z, y, x, 2] / spacing[2], nx)
                cz = change[z, y, x, 0] / spacing[0] * free_z
                cy = change[z, y, x, 1] / spacing[1] * free_y
                cx = change[z, y, x, 2] / spacing[2] * free_x
                for k in range(3):
                    moved = component_at(field_change, iz, iy, ix, fz, fy, fx, k)
                    dz, dy, dx = slopes_at(field, iz, iy, ix, fz, fy, fx, k)
                    result[z, y, x, k] = change[z, y, x, k] + moved + dz * cz + dy * cy + dx * cx
    return result


@njit(**_LOOP)
def pull_own(u, field, force, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Transpose of `push` with no change of the field: the force on u. That on the field is `scatter`'s."""
    nz, ny, nx, _ = u.shape
    own = np.empty_like(force)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                iz, fz, free_z = cell(z + u[z, y, x, 0] / spacing[0], nz)
                iy, fy, free_y = cell(y + u[z, y, x, 1] / spacing[1], ny)
                ix, fx, free_x = cell(x + u[z, y, x, 2] / spacing[2], nx)
                sz, sy, sx = np.float32(0), np.float32(0), np.float32(0)
                for k in range(3):
                    dz, dy, dx = slopes_at(field, iz, iy, ix, fz, fy, fx, k)
                    f = force[z, y, x, k]
                    sz += dz * f
                    sy += dy * f
                    sx += dx * f
                own[z, y, x, 0] = force[z, y, x, 0] + free_z * sz / spacing[0]
                own[z, y, x, 1] = force[z, y, x, 1] + free_y * sy / spacing[1]
                own[z, y, x, 2] = force[z, y, x, 2] + free_x * sx / spacing[2]
    return own


@njit(**_LOOP)
def gather(u, field, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return field(x + u)."""
    nz, ny, nx, _ = u.shape
    result = np.empty_like(u)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                iz, fz, _ = cell(z + u[z, y, x, 0] / spacing[0], nz)
                iy, fy, _ = cell(y + u[z, y, x, 1] / spacing[1], ny)
                ix, fx, _ = cell(x + u[z, y, x, 2] / spacing[2], nx)
                for k in range(3):
                    result[z, y, x, k] = component_at(field, iz, iy, ix, fz, fy, fx, k)
    return result


@njit(**_LOOP)
def scatter(u, force, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Transpose of `gather`."""
    nz, ny, nx, _ = u.shape
    result = np.zeros_like(u)
    one = np.float32(1)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                iz, fz, _ = cell(z + u[z, y, x, 0] / spacing[0], nz)
                iy, fy, _ = cell(y + u[z, y, x, 1] / spacing[1], ny)
                ix, fx, _ = cell(x + u[z, y, x, 2] / spacing[2], nx)
                f0 = force[z, y, x, 0]
                f1 = force[z, y, x, 1]
                f2 = force[z, y, x, 2]
                for corner in range(8):
                    oz = corner >> 2
                    oy = (corner >> 1) & 1
                    ox = corner & 1
                    s = (fz if oz else one - fz) * (fy if oy else one - fy) * (fx if ox else one - fx)
                    result[iz + oz, iy + oy, ix + ox, 0] += s * f0
                    result[iz + oz, iy + oy, ix + ox, 1] += s * f1
                    result[iz + oz, iy + oy, ix + ox, 2] += s * f2
    return result


@njit(**_LOOP)
def smallest_determinant(u, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Smallest Jacobian determinant at the corners of each cell."""
    nz, ny, nx, _ = u.shape
    result = np.empty((nz - 1, ny - 1, nx - 1))
    for z in range(nz - 1):
        for y in range(ny - 1):
            for x in range(nx - 1):
                smallest = np.inf
                for corner in range(8):
                    oz = z + (corner >> 2)
                    oy = y + ((corner >> 1) & 1)
                    ox = x + (corner & 1)
                    a = 1 + (u[z + 1, oy, ox, 0] - u[z, oy, ox, 0]) / spacing[0]
                    b = (u[oz, y + 1, ox, 0] - u[oz, y, ox, 0]) / spacing[1]
                    c = (u[oz, oy, x + 1, 0] - u[oz, oy, x, 0]) / spacing[2]
                    d = (u[z + 1, oy, ox, 1] - u[z, oy, ox, 1]) / spacing[0]
                    e = 1 + (u[oz, y + 1, ox, 1] - u[oz, y, ox, 1]) / spacing[1]
                    f = (u[oz, oy, x + 1, 1] - u[oz, oy, x, 1]) / spacing[2]
                    g = (u[z + 1, oy, ox, 2] - u[z, oy, ox, 2]) / spacing[0]
                    h = (u[oz, y + 1, ox, 2] - u[oz, y, ox, 2]) / spacing[1]
                    i = 1 + (u[oz, oy, x + 1, 2] - u[oz, oy, x, 2]) / spacing[2]
                    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
                    smallest = min(smallest, determinant)
                result[z, y, x] = smallest
    return result


@njit(**_LOOP)
def solved(m, a, b, c):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Solve m (x, y, z) = (a, b, c) by Cramer's rule."""
    zz = m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1]
    zy = m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2]
    zx = m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0]
    determinant = m[0, 0] * zz + m[0, 1] * zy + m[0, 2] * zx
    # No map of the solver's is that near to folding.
    scale = 1 / (determinant if abs(determinant) > 1e-6 else 1e-6)
    return (
        scale * (a * zz + b * (m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2]) + c * (m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1])),
        scale * (a * zy + b * (m[0, 0] * m[2, 2] - m[0, 2] * m[2, 0]) + c * (m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2])),
        scale * (a * zx + b * (m[0, 1] * m[2, 0] - m[0, 0] * m[2, 1]) + c * (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])),
    )


@njit(**_LOOP)
def invert(u, spacing, refine):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Displacement of the inverse map at each of its nodes, by Newton's method from a neighbour's.

    Simply to go back by what was moved forward converges only where the map's slope is less than 1, and not where it
    widens tissue to more than its double.
    """
    nz, ny, nx, _ = u.shape
    mz, my, mx = refine * (nz - 1) + 1, refine * (ny - 1) + 1, refine * (nx - 1) + 1
    result = np.zeros((mz, my, mx, 3), dtype=np.float32)
    place, step, slope = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for z in range(mz):
        for y in range(my):
            for x in range(mx):
                # The node before in its row; at a row's start the row's before, at a plane's the plane's.
                bz, by, bx = z - (y == 0 and x == 0 and z > 0), y - (x == 0 and y > 0), x - (x > 0)
                for k in range(3):
                    place[k] = result[bz, by, bx, k] / spacing[k]
                    step[k] = 0.0
                length, reached = 1.0, np.inf
                for _ in range(_INVERSIONS):
                    iz, fz, free_z = cell(z / refine + place[0] - length * step[0], nz)
                    iy, fy, free_y = cell(y / refine + place[1] - length * step[1], ny)
                    ix, fx, free_x = cell(x / refine + place[2] - length * step[2], nx)
                    a = place[0] - length * step[0] + component_at(u, iz, iy, ix, fz, fy, fx, 0) / spacing[0]
                    b = place[1] - length * step[1] + component_at(u, iz, iy, ix, fz, fy, fx, 1) / spacing[1]
                    c = place[2] - length * step[2] + component_at(u, iz, iy, ix, fz, fy, fx, 2) / spacing[2]
                    left = a * a + b * b + c * c
                    if left >= reached and length > _SHORTEST:
                        length /= 2
                        continue
                    for k in range(3):
                        place[k] -= length * step[k]
                        dz, dy, dx = slopes_at(u, iz, iy, ix, fz, fy, fx, k)
                        slope[k, 0] = free_z * dz / spacing[k] + (k == 0)
                        slope[k, 1] = free_y * dy / spacing[k] + (k == 1)
                        slope[k, 2] = free_x * dx / spacing[k] + (k == 2)
                    length, reached = 1.0, left
                    if left < _INVERTED**2:
                        break
                    step[0], step[1], step[2] = solved(slope, a, b, c)
                for k in range(3):
                    result[z, y, x, k] = place[k] * spacing[k]
    return result
