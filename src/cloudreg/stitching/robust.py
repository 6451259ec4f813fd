"""Least squares over measurements of which some are wrong.

A wrong measurement contradicts the others. Robust weights find it: they start at 1 for all, and their scale is lowered
step by step (graduated non-convexity) until what is off by more than about a pixel counts for nothing. What isn't known
to a pixel may be off by more.

References
----------
H. Yang, P. Antonante, V. Tzoumas, L. Carlone, "Graduated non-convexity for robust spatial perception: from non-minimal
solvers to global outlier rejection", IEEE Robot. Autom. Lett. 5 (2020).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Residual at which a measurement that is perfectly known counts a quarter in the end.
_ROBUST_PX = 1.0
_SCALE_STEP = 0.7
# One farther off than this many times that, and than four robust standard deviations, is an outlier.
_OUTLIER = 2.0
# Information of a direction of which nothing is known, 1/px^2.
_NOTHING = 1e-6


class System(Protocol):
    """Unknowns and the measurements of them."""

    @property
    def expected(self) -> Array:
        """The unknowns, were nothing measured."""

    def solve(self, robust: Array) -> Array:
        """Return the unknowns for given robust weights of the measurements."""

    def distances(self, unknowns: Array) -> Array:
        """Return how far off each measurement is, see `distances_px`."""


def distances_px(residuals: Array, information: Array) -> Array:
    """Return how far off measurements are, (m,): in pixels for one that is perfectly known, less for a vague one.

    Parameters
    ----------
    residuals
        (m, 3).
    information
        (m, 3, 3), inverse covariances, 1/px^2.
    """
    covariance = np.linalg.inv(information + _NOTHING * np.eye(3))
    squared = np.einsum("ki,ki->k", residuals, np.linalg.solve(covariance + np.eye(3), residuals[..., None])[..., 0])
    return np.asarray(np.sqrt(squared))


def reject(system: System, votes: Array) -> tuple[Array, Array]:
    """Return the robust weight of each measurement (m,), and which of those that vote (m,) are outliers (m,)."""
    if not votes.any():
        return np.zeros(len(votes)), np.zeros_like(votes)
    trust = _plausibility(system, votes)
    scale = max(float(system.distances(system.solve(trust))[votes].max()), _ROBUST_PX)
    robust = trust
    settled = 0
    while settled < 5:
        squared = system.distances(system.solve(robust)) ** 2
        robust = trust * (scale**2 / (scale**2 + squared)) ** 2
        settled += scale == _ROBUST_PX
        scale = max(scale * _SCALE_STEP, _ROBUST_PX)
    distance = system.distances(system.solve(robust))
    deviation = 1.4826 * float(np.median(distance[votes]))
    outliers = votes & (distance > max(_OUTLIER * _ROBUST_PX, 4 * deviation))
    # What remains is least squares again, but for the few between a pixel and the limit.
    kept = (_ROBUST_PX**2 / (_ROBUST_PX**2 + distance**2)) ** 2
    return np.where(votes & ~outliers, kept, 0.0), outliers


def _plausibility(system: System, votes: Array) -> Array:
    """How likely a measurement is by what was expected, 0..1: settles which link of a single broken loop is wrong."""
    distance = system.distances(system.expected)
    typical = max(3 * float(np.median(distance[votes])), 2.0)
    return np.where(votes, 1 / (1 + (distance / typical) ** 2), 0.0)
