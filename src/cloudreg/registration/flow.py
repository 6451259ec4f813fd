"""Velocities integrated to maps, the maps' derivatives, and the exact adjoints of these.

``exp(w)``, the map of a stationary velocity, is computed by scaling and squaring (Arsigny et al., MICCAI 2006):
u <- w / 2^n, then n times u(x) <- u(x) + u(x + u(x)), with trilinear interpolation on the velocity grid. A velocity
that changes with time is taken for stationary over each of T equal steps, and their maps are composed one after the
other, u(x) <- d_t(x) + u(x + d_t(x)) (semi-Lagrangian: Beg et al., IJCV 61:139-157, 2005). The derivative
differentiates exactly these steps, interpolation included, so that Gauss-Newton steps and line searches see one and
the same function.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration import nodes
from cloudreg.registration.backend import Field, backend_of

_SQUARINGS = 5
"""At least as many halvings of the time keep the map a smooth function of the velocity, with no jump of accuracy where
the count would change."""


@dataclass(frozen=True)
class Flow:
    """A stationary velocity, integrated.

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
            change = push(u, u, change, change, self.spacing)
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
            own, moved = pull(u, u, force, self.spacing)
            force = own + moved
        return force / 2 ** (len(self.steps) - 1)

    def fetched(self) -> Flow:
        """Return the same flow in the main memory."""
        return Flow(self.spacing, tuple(backend_of(u).fetch(u) for u in self.steps))


@dataclass(frozen=True)
class FlowInTime:
    """A velocity that changes with time, integrated: the flows of its T steps, one after the other.

    A target's point goes through the steps from the last to the first, at the end of which it's in the atlas.

    Parameters
    ----------
    parts
        The T flows, on one grid.
    joined
        Displacements (z, y, x, 3) in um from the start of each step on, that is of the maps of its own and all earlier
        steps; so the last is the whole.
    """

    parts: tuple[Flow, ...]
    joined: tuple[Field, ...]

    @property
    def spacing(self) -> NDArray[np.float32]:
        """Voxel size of the velocity grid, um (z, y, x)."""
        return self.parts[0].spacing

    @property
    def displacement(self) -> Field:
        """Displacement of the whole map in um, (z, y, x, 3)."""
        return self.joined[-1]

    @property
    def _scale(self) -> float:
        """From the velocity of a step to what it moves: see `integrate`."""
        return float(len(self.parts) ** -0.5)

    def derivative(self, change: Field) -> Field:
        """Return the change (z, y, x, 3) of the displacement for a change (T, z, y, x, 3) of the velocity."""
        push = backend_of(change).push
        total = self.parts[0].derivative(change[0] * self._scale)
        for part, before, one in zip(self.parts[1:], self.joined[:-1], change[1:], strict=True):
            moved = part.derivative(one * self._scale)
            total = push(part.displacement, before, moved, total, self.spacing)
        return total

    def half_way_back(self, force: Field) -> Field:
        """Return ``force`` (z, y, x, 3), carried back to the middle of each step, (T, z, y, x, 3).

        As in `Flow.half_way_back`, what a change of velocity does is taken at the point that it's reached from, without
        the push to the end. The changes d_t of the T displacements then add up, and as a curvature H of their sum,
        this is the bound |d_1 + ... + d_T|^2 <= T (|d_1|^2 + ... + |d_T|^2) in the norm of H, which is exact where all
        are alike. So each step has a curvature of its own, none less than the truth: positive, hence a direction of
        descent, and no more stiff than needed for changes that don't fight one another. The T of the bound is that of
        the squared velocity in `integrate`.
        """
        backend = backend_of(force)
        back = [self.parts[-1].half_way_back(force)]
        for later, part in itertools.pairwise(reversed(self.parts)):
            force = backend.scatter(later.displacement, force, self.spacing)
            back.append(part.half_way_back(force))
        return backend.xp.stack(back[::-1])

    def adjoint(self, force: Field) -> Field:
        """Return the transpose of `derivative` applied to ``force`` (z, y, x, 3)."""
        backend = backend_of(force)
        result = []
        for part, before in zip(self.parts[:0:-1], self.joined[-2::-1], strict=True):
            own, force = backend.pull(part.displacement, before, force, self.spacing)
            result.append(part.adjoint(own) * self._scale)
        result.append(self.parts[0].adjoint(force) * self._scale)
        return backend.xp.stack(result[::-1])

    def fetched(self) -> FlowInTime:
        """Return the same flow in the main memory."""
        fetch = backend_of(self.displacement).fetch
        return FlowInTime(tuple(part.fetched() for part in self.parts), tuple(fetch(u) for u in self.joined))


AnyFlow: TypeAlias = Flow | FlowInTime
"""A flow, whatever its velocity."""


def integrate(velocity: Field, spacing: NDArray[np.float32]) -> AnyFlow:
    """Compute the map of a velocity.

    Parameters
    ----------
    velocity
        (z, y, x, 3) float32 in um, stationary over a time of 1; or (T, z, y, x, 3), one of T equal steps each, times
        the square root of 1 / T, the step's time. So the squared norm is in both the energy of the whole: a stationary
        w and T times w / sqrt(T) cost the same and are the same map.
    spacing
        Voxel size of its grid, um.
    """
    if velocity.ndim == 4:
        return _exponential(velocity, spacing, _SQUARINGS)
    steps = len(velocity)
    squarings = max(1, _SQUARINGS - int(np.log2(steps)))
    return _composed([_exponential(v / steps**0.5, spacing, squarings) for v in velocity])


def _exponential(velocity: Field, spacing: NDArray[np.float32], squarings: int) -> Flow:
    """Return exp(velocity) by so many squarings, or as many as the velocity needs."""
    backend = backend_of(velocity)
    xp = backend.xp
    largest = float(xp.max(xp.abs(velocity) / backend.constant(spacing)))
    # A first step under a third of a voxel keeps each squaring invertible.
    squarings = max(squarings, int(np.ceil(np.log2(max(largest, 1e-6) / 0.33))))
    steps = [velocity / 2**squarings]
    for _ in range(squarings):
        steps.append(steps[-1] + backend.gather(steps[-1], steps[-1], spacing))
    return Flow(spacing, tuple(steps))


def _composed(parts: Sequence[Flow]) -> FlowInTime:
    gather = backend_of(parts[0].displacement).gather
    joined = [parts[0].displacement]
    for part in parts[1:]:
        joined.append(part.displacement + gather(part.displacement, joined[-1], part.spacing))
    return FlowInTime(tuple(parts), tuple(joined))


def smallest_determinant(flow: AnyFlow) -> float:
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


def invert(displacement: NDArray[np.float32], spacing: NDArray[np.float32], *, refine: int = 2) -> NDArray[np.float32]:
    """Return the displacement of the inverse map, on a finer grid.

    Parameters
    ----------
    displacement
        (z, y, x, 3) um, of an invertible map.
    spacing
        um.
    refine
        Nodes of the result per node of the input, per axis.

    Returns
    -------
    ndarray, shape (refine (n - 1) + 1, ..., 3)
        Solved at every node by Newton's method, to a ten-thousandth of a voxel.
    """
    inverse: NDArray[np.float32] = nodes.invert(displacement, spacing, refine)
    return inverse
