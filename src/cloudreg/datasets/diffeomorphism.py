"""A smooth, invertible deformation that is known exactly, both ways.

The map from atlas to sample is ``y = A phi(x)``, with an affine A and phi the flow at time 1 of a stationary velocity:
a sum of vectors with Gaussian falloff. As the velocity is a formula, the flow is integrated at any point by
Runge-Kutta steps, forward for phi and backward for its inverse, without a grid and to about a nanometre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from cloudreg.datasets.splines import SplineField
from cloudreg.space import Grid

_STEPS = 10
_NODE_FRACTION = 6.0


@dataclass(frozen=True, eq=False)
class Deformation:
    """The flow of a stationary velocity field.

    Parameters
    ----------
    centres_um
        (n, 3) z y x, where the velocity's parts are centred.
    vectors_um
        (n, 3) z y x, velocity of each part at its centre, per unit of time.
    radius_um
        Standard deviation of the Gaussian falloff.
    """

    centres_um: NDArray[np.float64]
    vectors_um: NDArray[np.float64]
    radius_um: float

    @staticmethod
    def random(centre_um: ArrayLike, half_size_um: ArrayLike, largest_um: float, seed: int) -> Deformation:
        """Draw a deformation of the ellipsoid with this centre and these half axes (z, y, x).

        Parameters
        ----------
        centre_um, half_size_um
            Of the ellipsoid, z y x.
        largest_um
            Length of the largest displacement within the ellipsoid, to about one percent.
        seed
            Of the draw.
        """
        generator = np.random.default_rng([seed, 2])
        centre, half = np.asarray(centre_um, dtype=float), np.asarray(half_size_um, dtype=float)
        directions = generator.normal(size=(14, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        reach = generator.uniform(0.3, 0.9, size=(14, 1))
        vectors = generator.normal(size=(14, 3))
        flow = Deformation(centre + directions * reach * half, vectors, float(0.36 * half.mean()))
        ball = generator.normal(size=(4000, 3))
        ball *= generator.uniform(0, 1, size=(4000, 1)) ** (1 / 3) / np.linalg.norm(ball, axis=1, keepdims=True)
        points = centre + ball * half
        for _ in range(4):
            largest = np.linalg.norm(flow.forward(points) - points, axis=1).max()
            flow = Deformation(flow.centres_um, flow.vectors_um * (largest_um / largest), flow.radius_um)
        return flow

    def forward(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Map points (n, 3) by phi."""
        return self._flow(points_um, 1.0)

    def inverse(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Map points (n, 3) by the inverse of phi."""
        return self._flow(points_um, -1.0)

    def _flow(self, points_um: ArrayLike, time: float) -> NDArray[np.float64]:
        points = np.array(points_um, dtype=np.float64).reshape(-1, 3)
        _integrate(points, self.centres_um, self.vectors_um * (time / _STEPS), 0.5 / self.radius_um**2)
        return points


@dataclass(frozen=True, eq=False)
class TrueMap:
    """The map between atlas and sample, ``y = A phi(x)``.

    Parameters
    ----------
    affine
        A: 4 x 4, micrometres to micrometres, z y x.
    deformation
        phi.
    """

    affine: NDArray[np.float64]
    deformation: Deformation

    def atlas_to_target(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Map atlas points (n, 3), z y x, to the sample."""
        moved = self.deformation.forward(points_um)
        return np.asarray(moved @ self.affine[:3, :3].T + self.affine[:3, 3])

    def target_to_atlas(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Map sample points (n, 3), z y x, to the atlas."""
        back = self.inverse_affine
        points = np.asarray(points_um, dtype=np.float64).reshape(-1, 3)
        return self.deformation.inverse(points @ back[:3, :3].T + back[:3, 3])

    @cached_property
    def inverse_affine(self) -> NDArray[np.float64]:
        """A^-1."""
        return np.asarray(np.linalg.inv(self.affine))

    def displacement_to_atlas(self, grid: Grid) -> SplineField:
        """Return phi^-1 - id as a spline over the extent of an atlas grid.

        For images of millions of voxels. The nodes are so dense that the spline is off by less than 0.1 um.
        """
        spacing = self.deformation.radius_um / _NODE_FRACTION
        low, high = grid.bounds_um()
        shape = np.ceil((high - low) / spacing).astype(int) + 3
        nodes = Grid.from_spacing(shape.tolist(), [spacing] * 3, (low - spacing).tolist())
        index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
        points = nodes.index_to_um(index)
        vectors = (self.deformation.inverse(points) - points).reshape(*nodes.shape, 3)
        return SplineField.through(vectors, nodes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists for JSON."""
        return {
            "affine": self.affine.tolist(),
            "centres_um": self.deformation.centres_um.tolist(),
            "vectors_um": self.deformation.vectors_um.tolist(),
            "radius_um": self.deformation.radius_um,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrueMap:
        """Make a map from what `to_dict` returned."""
        centres, vectors = np.array(values["centres_um"]), np.array(values["vectors_um"])
        return TrueMap(np.array(values["affine"]), Deformation(centres, vectors, float(values["radius_um"])))


def random_affine(
    axes: NDArray[np.float64], source_centre_um: ArrayLike, destination_centre_um: ArrayLike, seed: int
) -> NDArray[np.float64]:
    """Draw a rotation of 5 to 8 degrees and a scale of up to 5 % per axis.

    Parameters
    ----------
    axes
        Signed permutation (3, 3) from source to destination axes.
    source_centre_um, destination_centre_um
        Points that are mapped onto each other, z y x.
    seed
        Of the draw.

    Returns
    -------
    ndarray, shape (4, 4)
        Source micrometres to destination micrometres.
    """
    from scipy.spatial.transform import Rotation

    generator = np.random.default_rng([seed, 1])
    direction = generator.normal(size=3)
    angle = np.deg2rad(generator.uniform(5, 8))
    rotation = Rotation.from_rotvec(angle * direction / np.linalg.norm(direction)).as_matrix()
    # Small and large in turn, so that the scale is anisotropic in every draw.
    scale = 1 + generator.uniform(0.02, 0.05, size=3) * generator.permutation([1.0, -1.0, 0.5])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(scale) @ axes
    affine[:3, 3] = np.asarray(destination_centre_um) - affine[:3, :3] @ np.asarray(source_centre_um)
    return affine


@njit(cache=True, nogil=True)
def _velocity(z, y, x, centres, vectors, falloff):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    vz = vy = vx = 0.0
    for n in range(centres.shape[0]):
        a, b, c = z - centres[n, 0], y - centres[n, 1], x - centres[n, 2]
        w = np.exp(-falloff * (a * a + b * b + c * c))
        vz += w * vectors[n, 0]
        vy += w * vectors[n, 1]
        vx += w * vectors[n, 2]
    return vz, vy, vx


@njit(cache=True, nogil=True, parallel=True)
def _integrate(points, centres, vectors, falloff):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Classical Runge-Kutta steps in place; ``vectors`` are per step."""
    for i in prange(points.shape[0]):
        z, y, x = points[i]
        for _ in range(_STEPS):
            az, ay, ax = _velocity(z, y, x, centres, vectors, falloff)
            bz, by, bx = _velocity(z + az / 2, y + ay / 2, x + ax / 2, centres, vectors, falloff)
            cz, cy, cx = _velocity(z + bz / 2, y + by / 2, x + bx / 2, centres, vectors, falloff)
            dz, dy, dx = _velocity(z + cz, y + cy, x + cx, centres, vectors, falloff)
            z += (az + 2 * bz + 2 * cz + dz) / 6
            y += (ay + 2 * by + 2 * cy + dy) / 6
            x += (ax + 2 * bx + 2 * cx + dx) / 6
        points[i, 0], points[i, 1], points[i, 2] = z, y, x
