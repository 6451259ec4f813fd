"""The frames that exported transforms live in, and the world of ITK."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.frames import lps_mm
from cloudreg.space import Grid
from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.transform import Transform


@dataclass(frozen=True, eq=False)
class Frame:
    """Where an atlas or a target lies.

    Parameters
    ----------
    grid
        Of its volume, in micrometres.
    orientation
        Letters of the physical axes z, y, x, or None where they are not known.
    """

    grid: Grid
    orientation: str | None

    @property
    def to_lps_mm(self) -> NDArray[np.float64]:
        """4 x 4, physical micrometres (z, y, x) to LPS millimetres (x, y, z); see `cloudreg.io.frames.lps_mm`."""
        return lps_mm(self.orientation)

    def corners_um(self) -> NDArray[np.float64]:
        """Return the outer corners of the volume, (8, 3)."""
        ends = [(-0.5, n - 0.5) for n in self.grid.shape]
        return self.grid.index_to_um(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))


def over_both(transform: Transform, atlas: Frame, target: Frame) -> Transform:
    """Return the same map with nodes over the whole of both volumes, for programs that stop where nodes end."""
    corners = target.corners_um()
    reach = np.concatenate([atlas.corners_um(), corners @ transform.inverse_affine[:3, :3].T])
    reach[8:] += transform.inverse_affine[:3, 3]
    return Transform(transform.affine, transform.to_target.extended(reach), transform.to_atlas.extended(reach))


def in_lps(transform: Transform, atlas: Frame, target: Frame) -> Transform:
    """Return the same map in LPS millimetres (x, y, z) on both sides, with nodes over both volumes."""
    return over_both(transform, atlas, target).in_frames(atlas=atlas.to_lps_mm, target=target.to_lps_mm)


def itk_geometry(field: DisplacementField) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return origin, spacing and direction cosines, for indices in ITK's order (x, y, z).

    Raises
    ------
    InputError
        If the nodes' axes are not at right angles, which neither ITK nor NIfTI can say.
    """
    affine = field.grid.affine
    columns = affine[:3, 2::-1]
    spacing = np.linalg.norm(columns, axis=0)
    direction = columns / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-5):
        raise InputError(
            "expected displacement nodes along axes at right angles, got a sheared grid: compose onto another"
        )
    return affine[:3, 3].copy(), spacing, direction
