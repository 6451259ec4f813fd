"""The exponential of a stationary velocity, its derivative and the exact adjoint of that derivative.

``exp(w)`` is computed by scaling and squaring (Arsigny et al., MICCAI 2006): u <- w / 2^n, then n times
u(x) <- u(x) + u(x + u(x)), with trilinear interpolation on the velocity grid. The derivative differentiates
exactly these steps, interpolation included, so that Gauss-Newton steps and line searches see one and the same
function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.registration.sampling import VALUE_KEEPING, cell, vector_at

# One thread: a velocity grid is small, and handing its loops to threads costs more than they take on a busy machine.
_LOOP = {"cache": True, "nogil": True, "fastmath": VALUE_KEEPING}


@dataclass(frozen=True)
class Flow:
    """A velocity, integrated.

    Parameters
    ----------
    spacing
        Voxel size of the velocity grid, um (z, y, x).
    steps
        Displacements (z, y, x, 3) in um before each squaring, and the last one.
    """

    spacing: NDArray[np.float32]
    steps: tuple[NDArray[np.float32], ...]

    @property
    def displacement(self) -> NDArray[np.float32]:
        """``exp(w) - id`` in um, (z, y, x, 3)."""
        return self.steps[-1]

    def derivative(self, change: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the change of the displacement for a change of the velocity, both (z, y, x, 3) um."""
        squarings = len(self.steps) - 1
        change = change / np.float32(2**squarings)
        for u in self.steps[:-1]:
            change = _push(u, change, self.spacing)
        return change

    def half_way_back(self, force: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``force`` (z, y, x, 3), carried back from where the flow's first half takes each node.

        The derivative of the exponential is the mean, over the flow's time, of the change of velocity at the point
        reached, pushed on to the end. Its midpoint without the push serves for curvature, where an approximation costs
        steps but no accuracy.
        """
        scattered: NDArray[np.float32] = _scatter(self.steps[-2], force, self.spacing)
        return scattered

    def adjoint(self, force: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the transpose of `derivative` applied to ``force``, (z, y, x, 3)."""
        for u in reversed(self.steps[:-1]):
            force = _pull(u, force, self.spacing)
        return force / np.float32(2 ** (len(self.steps) - 1))


def integrate(velocity: NDArray[np.float32], spacing: NDArray[np.float32]) -> Flow:
    """Compute ``exp(velocity)``.

    Parameters
    ----------
    velocity
        (z, y, x, 3) float32, um.
    spacing
        Voxel size of its grid, um.
    """
    largest = float(np.max(np.abs(velocity) / spacing, initial=0.0))
    # A first step under a third of a voxel keeps each squaring invertible. At least five keep the result a smooth
    # function of the velocity, with no jump of accuracy where the count would change.
    squarings = max(5, int(np.ceil(np.log2(max(largest, 1e-6) / 0.33))))
    steps = [velocity / np.float32(2**squarings)]
    for _ in range(squarings):
        steps.append(steps[-1] + _gather(steps[-1], steps[-1], spacing))
    return Flow(spacing, tuple(steps))


def jacobian_determinant(displacement: NDArray[np.float32], spacing: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the determinant of the trilinear map at the eight corners of each cell, the smallest of the eight.

    Parameters
    ----------
    displacement
        (z, y, x, 3), um.
    spacing
        um.

    Returns
    -------
    ndarray, shape (z - 1, y - 1, x - 1)
        A trilinear map's determinant is smallest near a corner of the cell, so a positive value means no fold there.
    """
    smallest: NDArray[np.float64] = _smallest_determinant(displacement, spacing)
    return smallest


def invert(
    displacement: NDArray[np.float32], spacing: NDArray[np.float32], start: NDArray[np.float32], *, refine: int = 2
) -> NDArray[np.float32]:
    """Return the displacement of the inverse map, on a finer grid.

    Parameters
    ----------
    displacement
        (z, y, x, 3) um, of an invertible map.
    spacing
        um.
    start
        First guess on the same grid, such as ``exp(-w) - id``.
    refine
        Nodes of the result per node of the input, per axis.

    Returns
    -------
    ndarray, shape (refine (n - 1) + 1, ..., 3)
        Solved at every node by fixed-point iteration to well under a thousandth of a voxel.
    """
    inverse: NDArray[np.float32] = _invert(displacement, spacing, start, refine)
    return inverse


@njit(**_LOOP)
def _slopes(u, iz, iy, ix, fz, fy, fx, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Derivatives of component k of the trilinear interpolant per voxel, along z, y, x."""
    one = np.float32(1)
    a000 = u[iz, iy, ix, k]
    a001 = u[iz, iy, ix + 1, k]
    a010 = u[iz, iy + 1, ix, k]
    a011 = u[iz, iy + 1, ix + 1, k]
    a100 = u[iz + 1, iy, ix, k]
    a101 = u[iz + 1, iy, ix + 1, k]
    a110 = u[iz + 1, iy + 1, ix, k]
    a111 = u[iz + 1, iy + 1, ix + 1, k]
    gz, gy, gx = one - fz, one - fy, one - fx
    dz = gy * (gx * (a100 - a000) + fx * (a101 - a001)) + fy * (gx * (a110 - a010) + fx * (a111 - a011))
    dy = gz * (gx * (a010 - a000) + fx * (a011 - a001)) + fz * (gx * (a110 - a100) + fx * (a111 - a101))
    dx = gz * (gy * (a001 - a000) + fy * (a011 - a010)) + fz * (gy * (a101 - a100) + fy * (a111 - a110))
    return dz, dy, dx


@njit(**_LOOP)
def _push(u, change, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Derivative of one squaring: change + change(x + u) + Du(x + u) change."""
    nz, ny, nx, _ = u.shape
    result = np.empty_like(u)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                pz = z + u[z, y, x, 0] / spacing[0]
                py = y + u[z, y, x, 1] / spacing[1]
                px = x + u[z, y, x, 2] / spacing[2]
                iz, fz, free_z = cell(pz, nz)
                iy, fy, free_y = cell(py, ny)
                ix, fx, free_x = cell(px, nx)
                cz = change[z, y, x, 0] / spacing[0] * free_z
                cy = change[z, y, x, 1] / spacing[1] * free_y
                cx = change[z, y, x, 2] / spacing[2] * free_x
                moved = vector_at(change, pz, py, px)
                for k in range(3):
                    dz, dy, dx = _slopes(u, iz, iy, ix, fz, fy, fx, k)
                    result[z, y, x, k] = change[z, y, x, k] + moved[k] + dz * cz + dy * cy + dx * cx
    return result


@njit(**_LOOP)
def _pull(u, force, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Transpose of `_push`."""
    nz, ny, nx, _ = u.shape
    result = force.copy()
    one = np.float32(1)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                pz = z + u[z, y, x, 0] / spacing[0]
                py = y + u[z, y, x, 1] / spacing[1]
                px = x + u[z, y, x, 2] / spacing[2]
                iz, fz, free_z = cell(pz, nz)
                iy, fy, free_y = cell(py, ny)
                ix, fx, free_x = cell(px, nx)
                f0 = force[z, y, x, 0]
                f1 = force[z, y, x, 1]
                f2 = force[z, y, x, 2]
                for k in range(3):
                    dz, dy, dx = _slopes(u, iz, iy, ix, fz, fy, fx, k)
                    f = force[z, y, x, k]
                    result[z, y, x, 0] += free_z * dz * f / spacing[0]
                    result[z, y, x, 1] += free_y * dy * f / spacing[1]
                    result[z, y, x, 2] += free_x * dx * f / spacing[2]
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
def _gather(u, field, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return field(x + u)."""
    nz, ny, nx, _ = u.shape
    result = np.empty_like(u)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                rz, ry, rx = vector_at(
                    field,
                    z + u[z, y, x, 0] / spacing[0],
                    y + u[z, y, x, 1] / spacing[1],
                    x + u[z, y, x, 2] / spacing[2],
                )
                result[z, y, x, 0] = rz
                result[z, y, x, 1] = ry
                result[z, y, x, 2] = rx
    return result


@njit(**_LOOP)
def _scatter(u, force, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Transpose of `_gather`."""
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
def _smallest_determinant(u, spacing):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
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
def _invert(u, spacing, start, refine):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    nz, ny, nx, _ = u.shape
    mz, my, mx = refine * (nz - 1) + 1, refine * (ny - 1) + 1, refine * (nx - 1) + 1
    result = np.empty((mz, my, mx, 3), dtype=np.float32)
    for z in range(mz):
        for y in range(my):
            for x in range(mx):
                hz, hy, hx = z / refine, y / refine, x / refine
                vz, vy, vx = vector_at(start, hz, hy, hx)
                for _ in range(200):
                    tz, ty, tx = vector_at(u, hz + vz / spacing[0], hy + vy / spacing[1], hx + vx / spacing[2])
                    change = abs(vz + tz) / spacing[0] + abs(vy + ty) / spacing[1] + abs(vx + tx) / spacing[2]
                    vz, vy, vx = -tz, -ty, -tx
                    if change < 1e-5:
                        break
                result[z, y, x, 0] = vz
                result[z, y, x, 1] = vy
                result[z, y, x, 2] = vx
    return result
