"""The exponential of a stationary velocity, its derivative and the exact adjoint of that derivative.

``exp(w)`` is computed by scaling and squaring (Arsigny et al., MICCAI 2006): u <- w / 2^n, then n times
u(x) <- u(x) + u(x + u(x)), with trilinear interpolation on the velocity grid. The derivative differentiates
exactly these steps, interpolation included, so that Gauss-Newton steps and line searches see one and the same
function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration import nodes
from cloudreg.registration.backend import Field, backend_of


@dataclass(frozen=True)
class Flow:
    """A velocity, integrated.

    Parameters
    ----------
    spacing
        Voxel size of the velocity grid, um (z, y, x).
    steps
        Displacements (z, y, x, 3) in um before each squaring, and the last one; all on one device.
    """

    spacing: NDArray[np.float32]
    steps: tuple[Field, ...]

    @property
    def displacement(self) -> Field:
        """``exp(w) - id`` in um, (z, y, x, 3)."""
        return self.steps[-1]

    def derivative(self, change: Field) -> Field:
        """Return the change of the displacement for a change of the velocity, both (z, y, x, 3) um."""
        push = backend_of(change).push
        change = change / 2 ** (len(self.steps) - 1)
        for u in self.steps[:-1]:
            change = push(u, change, self.spacing)
        return change

    def half_way_back(self, force: Field) -> Field:
        """Return ``force`` (z, y, x, 3), carried back from where the flow's first half takes each node.

        The derivative of the exponential is the mean, over the flow's time, of the change of velocity at the point
        reached, pushed on to the end. Its midpoint without the push serves for curvature, where an approximation costs
        steps but no accuracy.
        """
        return backend_of(force).scatter(self.steps[-2], force, self.spacing)

    def adjoint(self, force: Field) -> Field:
        """Return the transpose of `derivative` applied to ``force``, (z, y, x, 3)."""
        pull = backend_of(force).pull
        for u in reversed(self.steps[:-1]):
            force = pull(u, force, self.spacing)
        return force / 2 ** (len(self.steps) - 1)

    def fetched(self) -> Flow:
        """Return the same flow in the main memory."""
        return Flow(self.spacing, tuple(backend_of(u).fetch(u) for u in self.steps))


def integrate(velocity: Field, spacing: NDArray[np.float32]) -> Flow:
    """Compute ``exp(velocity)``.

    Parameters
    ----------
    velocity
        (z, y, x, 3) float32, um.
    spacing
        Voxel size of its grid, um.
    """
    backend = backend_of(velocity)
    xp = backend.xp
    largest = float(xp.max(xp.abs(velocity) / backend.constant(spacing)))
    # A first step under a third of a voxel keeps each squaring invertible. At least five keep the result a smooth
    # function of the velocity, with no jump of accuracy where the count would change.
    squarings = max(5, int(np.ceil(np.log2(max(largest, 1e-6) / 0.33))))
    steps = [velocity / 2**squarings]
    for _ in range(squarings):
        steps.append(steps[-1] + backend.gather(steps[-1], steps[-1], spacing))
    return Flow(spacing, tuple(steps))


def smallest_determinant(flow: Flow) -> float:
    """Return the smallest Jacobian determinant of a flow anywhere on its grid (see `jacobian_determinant`)."""
    return backend_of(flow.displacement).smallest_determinant(flow.displacement, flow.spacing)


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
    smallest: NDArray[np.float64] = nodes.smallest_determinant(displacement, spacing)
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
    inverse: NDArray[np.float32] = nodes.invert(displacement, spacing, start, refine)
    return inverse
