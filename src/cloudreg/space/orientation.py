"""Anatomical letters of array axes.

Letters are BrainGlobe's: one per axis in array order (z, y, x), each naming the side of the brain
where index 0 lies. ``asr`` starts at the Anterior, Superior, Right corner, so z grows toward the back,
y toward the bottom and x toward the left.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError

_PAIRS = {"a": 0, "p": 0, "s": 1, "i": 1, "l": 2, "r": 2}
_SIGNS = {"a": 1, "p": -1, "s": 1, "i": -1, "r": 1, "l": -1}


def parse_orientation(letters: str) -> str:
    """Check three letters and return them in lower case.

    Raises
    ------
    InputError
        If they are not one of a/p, one of s/i and one of l/r.
    """
    lowered = letters.strip().lower()
    if len(lowered) != 3 or sorted(_PAIRS.get(c, -1) for c in lowered) != [0, 1, 2]:
        raise InputError(
            f"an orientation is three letters, one of a/p, one of s/i and one of l/r, each the side where an array "
            f"axis (z, y, x) starts, such as asr; got {letters!r}"
        )
    return lowered


def axes_between(source: str, destination: str, *, allow_mirror: bool = False) -> NDArray[np.float64]:
    """Return the signed permutation that turns source axes into destination axes.

    Parameters
    ----------
    source, destination
        Orientation letters of the two spaces.
    allow_mirror
        Accept a pair of letters whose relation is a mirror image.

    Returns
    -------
    ndarray, shape (3, 3)
        ``P`` with ``vector_in_destination = P @ vector_in_source``.

    Raises
    ------
    InputError
        If letters are invalid, or the relation is a mirror and ``allow_mirror`` is false.
    """
    source, destination = parse_orientation(source), parse_orientation(destination)
    matrix = np.zeros((3, 3))
    for row, letter in enumerate(destination):
        for column, other in enumerate(source):
            if _PAIRS[letter] == _PAIRS[other]:
                matrix[row, column] = _SIGNS[letter] * _SIGNS[other]
    if np.linalg.det(matrix) < 0 and not allow_mirror:
        raise InputError(
            f"orientations {source} and {destination} are mirror images of each other, which would swap left and "
            "right: check the letters (each names the side where an array axis starts), or set "
            "registration.allow_mirror: true"
        )
    return matrix


def proper_orientations(like: str = "asr") -> list[str]:
    """Return the 24 orientations that are rotations, not mirrors, of ``like``."""
    result = []
    for axes in itertools.permutations(("ap", "si", "lr")):
        for letters in itertools.product(*axes):
            code = "".join(letters)
            if np.linalg.det(axes_between(like, code, allow_mirror=True)) > 0:
                result.append(code)
    return sorted(result)


def left_right_axis(letters: str) -> tuple[int, int]:
    """Return the array axis that runs left-right, and +1 if it starts at the right side, -1 if at the left."""
    letters = parse_orientation(letters)
    axis = next(i for i, c in enumerate(letters) if c in "lr")
    return axis, _SIGNS[letters[axis]]
