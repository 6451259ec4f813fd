"""World coordinates of NIfTI and NRRD headers and of ITK, in and out.

A header's world is right-anterior-superior (RAS) X, Y, Z in millimetres; our physical vector is (Z, Y, X) in
micrometres. Its axes start at the Inferior, Posterior and Left sides, so its letters are ``ipl``. ITK's world is
left-posterior-superior (LPS): ``iar`` in our order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Grid, axes_between

RAS_LETTERS = "ipl"
LPS_LETTERS = "iar"


def grid_from_ras(shape: tuple[int, int, int], ras_um: NDArray[np.float64]) -> Grid:
    """Return the grid of a 4 x 4 matrix from array index to RAS micrometres."""
    affine = ras_um.copy()
    affine[:3] = ras_um[2::-1]
    return Grid(shape, affine)


def ras_from_grid(grid: Grid, orientation: str) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from array index to RAS micrometres."""
    turn = np.eye(4)
    # Letters of any handedness name real directions; writing them out can't mirror anything.
    turn[:3, :3] = axes_between(orientation, RAS_LETTERS[::-1], allow_mirror=True)
    return np.asarray(turn @ grid.affine)


def lps_mm(orientation: str | None) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from physical micrometres (z, y, x) to ITK's LPS millimetres (x, y, z).

    Parameters
    ----------
    orientation
        Letters of the physical axes. Where they are not known the axes keep their names: our x is ITK's x.
    """
    matrix = np.eye(4)
    turn = axes_between(orientation or LPS_LETTERS, LPS_LETTERS[::-1], allow_mirror=True)
    matrix[:3, :3] = turn / 1000.0
    return matrix
