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
def invert(u, spacing, refine):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Displacement of the inverse map, by fixed-point iteration at each of its nodes."""
    nz, ny, nx, _ = u.shape
    mz, my, mx = refine * (nz - 1) + 1, refine * (ny - 1) + 1, refine * (nx - 1) + 1
    result = np.zeros((mz, my, mx, 3), dtype=np.float32)
    for z in range(mz):
        for y in range(my):
            for x in range(mx):
                for _ in range(200):
                    iz, fz, _ = cell(z / refine + result[z, y, x, 0] / spacing[0], nz)
                    iy, fy, _ = cell(y / refine + result[z, y, x, 1] / spacing[1], ny)
                    ix, fx, _ = cell(x / refine + result[z, y, x, 2] / spacing[2], nx)
                    change = 0.0
                    for k in range(3):
                        there = component_at(u, iz, iy, ix, fz, fy, fx, k)
                        change += abs(result[z, y, x, k] + there) / spacing[k]
                        result[z, y, x, k] = -there
                    if change < 1e-5:
                        break
    return result
