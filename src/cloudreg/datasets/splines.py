"""Cubic B-splines with several components: the phantom's images and its deformation, at any point of space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from cloudreg.space import Grid

_JIT = {"cache": True, "nogil": True, "fastmath": True}


@dataclass(frozen=True, eq=False)
class SplineField:
    """A function of place given by spline coefficients.

    Parameters
    ----------
    coefficients
        float32 (z, y, x, component).
    grid
        Where the coefficients lie; axis aligned.
    """

    coefficients: NDArray[np.float32]
    grid: Grid

    @staticmethod
    def through(values: ArrayLike, grid: Grid) -> SplineField:
        """Return the spline that passes through values (z, y, x, component)."""
        from scipy.ndimage import spline_filter1d

        coefficients = np.asarray(values, dtype=np.float64)
        for axis in range(3):
            coefficients = spline_filter1d(coefficients, order=3, axis=axis, mode="mirror")
        return SplineField(coefficients.astype(np.float32), grid)

    def at(self, points_um: ArrayLike) -> NDArray[np.float32]:
        """Return values (n, component) at points (n, 3); 0 outside the nodes."""
        index = self.grid.um_to_index(np.asarray(points_um, dtype=np.float64).reshape(-1, 3))
        values = np.zeros((len(index), self.coefficients.shape[3]), dtype=np.float32)
        _at_points(values, self.coefficients, index)
        return values


def render(
    image: SplineField, displacement: SplineField, to_atlas: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Evaluate a deformed image on a lattice.

    Parameters
    ----------
    image, displacement
        In atlas space: the image, and what is added to an atlas position to find its place in the image.
    to_atlas
        4 x 4, from an index (z, y, x) of the lattice to atlas micrometres.
    shape
        Of the lattice, z y x.

    Returns
    -------
    ndarray, float32, shape (component, z, y, x)
        ``image(p + displacement(p))`` with ``p = to_atlas(index)``.
    """
    out = np.zeros((image.coefficients.shape[3], *shape), dtype=np.float32)
    to_nodes = np.linalg.inv(displacement.grid.affine) @ to_atlas
    to_image = np.linalg.inv(image.grid.affine)
    _render(out, image.coefficients, displacement.coefficients, to_atlas, to_nodes, to_image)
    return out


def positions(
    displacement: SplineField, to_atlas: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return ``p + displacement(p)`` with ``p = to_atlas(index)`` for a lattice: float32 (z, y, x, 3) micrometres."""
    out = np.zeros((*shape, 3), dtype=np.float32)
    to_nodes = np.linalg.inv(displacement.grid.affine) @ to_atlas
    _positions(out, displacement.coefficients, to_atlas, to_nodes)
    return out


@njit(**_JIT)
def _weights(t):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Weights of the four nodes around a position, t past the second."""
    s = 1 - t
    return (
        np.float32(s * s * s / 6),
        np.float32(2 / 3 - t * t * (1 - t / 2)),
        np.float32(2 / 3 - s * s * (1 - s / 2)),
        np.float32(t * t * t / 6),
    )


@njit(**_JIT)
def _add(out, coefficients, z, y, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Add the spline's components at a fractional node index to ``out``; nothing outside the nodes."""
    nz, ny, nx, components = coefficients.shape
    if not (z >= 1 and y >= 1 and x >= 1 and z < nz - 2 and y < ny - 2 and x < nx - 2):
        return
    i, j, k = int(z) - 1, int(y) - 1, int(x) - 1
    wz, wy = _weights(z - i - 1), _weights(y - j - 1)
    w0, w1, w2, w3 = _weights(x - k - 1)
    for a in range(4):
        for b in range(4):
            w = wz[a] * wy[b]
            row = coefficients[i + a, j + b]
            for n in range(components):
                out[n] += w * (w0 * row[k, n] + w1 * row[k + 1, n] + w2 * row[k + 2, n] + w3 * row[k + 3, n])


@njit(**_JIT)
def _at_points(values, coefficients, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for n in range(index.shape[0]):
        _add(values[n], coefficients, index[n, 0], index[n, 1], index[n, 2])


@njit(**_JIT)
def _apply(m, i, j, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return (
        m[0, 0] * i + m[0, 1] * j + m[0, 2] * k + m[0, 3],
        m[1, 0] * i + m[1, 1] * j + m[1, 2] * k + m[1, 3],
        m[2, 0] * i + m[2, 1] * j + m[2, 2] * k + m[2, 3],
    )


@njit(**_JIT)
def _positions(out, displacement, to_atlas, to_nodes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                p = _apply(to_atlas, i, j, k)
                q = _apply(to_nodes, i, j, k)
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = p
                _add(out[i, j, k], displacement, q[0], q[1], q[2])


@njit(**_JIT)
def _render(out, image, displacement, to_atlas, to_nodes, to_image):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    u = np.zeros(3, dtype=np.float32)
    values = np.zeros(image.shape[3], dtype=np.float32)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for k in range(out.shape[3]):
                q = _apply(to_nodes, i, j, k)
                u[:] = 0
                _add(u, displacement, q[0], q[1], q[2])
                p = _apply(to_atlas, i, j, k)
                z, y, x = _apply(to_image, p[0] + u[0], p[1] + u[1], p[2] + u[2])
                values[:] = 0
                _add(values, image, z, y, x)
                out[:, i, j, k] = values
