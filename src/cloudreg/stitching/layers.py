"""One shift out of those that several layers of planes gave for the same pair of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.stitching.pairwise import NOTHING, Shift, same_shift

# Where two layers are within this distance of each other, in pixels, no other need be read.
_ENOUGH_PX = 0.2
# What lenses and interpolation leave uncertain however bright the texture is.
FLOOR_PX = 0.1


@dataclass(frozen=True)
class Combined:
    """What all layers of a pair say.

    Parameters
    ----------
    lag_px
        (3,), position of the second strip's first voxel in the first strip.
    correlation, sharpness
        Means over the layers that agree, see `Shift`.
    information
        (3, 3), inverse covariance of the lag, 1/px^2.
    """

    lag_px: NDArray[np.float64]
    correlation: float
    sharpness: NDArray[np.float64]
    information: NDArray[np.float64]


def agree_closely(shifts: list[Shift]) -> bool:
    """Whether two of the layers agree so well that no other need be read."""
    lags = np.array([shift.lag_px for shift in shifts])
    distances = np.linalg.norm(lags[:, None] - lags, axis=2)[np.triu_indices(len(lags), 1)]
    return bool((distances < _ENOUGH_PX).any())


def combine_layers(shifts: Sequence[Shift]) -> Combined:
    """Average the layers that agree with the best supported one, each by what it knows.

    Layers agree where their lags differ by less than a pixel or so, or by no more than they are uncertain. A layer
    that contradicts lowers the information of the mean, and so do layers that scatter more than they should.

    Parameters
    ----------
    shifts
        At least one, of the same pair of strips.
    """
    lags = np.array([shift.lag_px for shift in shifts])
    informations = np.array([shift.information for shift in shifts])
    support = np.array([shift.voxels * shift.correlation**2 for shift in shifts])
    close = np.array([[same_shift(one, other) for other in shifts] for one in shifts])
    kept = close[int(np.argmax(close @ support))]
    share = float(support[kept].sum() / support.sum())

    known = informations[kept].sum(axis=0) + NOTHING * np.eye(3)
    start = np.average(lags[kept], axis=0, weights=support[kept])
    pulls = [information @ (lag - start) for information, lag in zip(informations[kept], lags[kept], strict=True)]
    mean = start + np.linalg.solve(known, np.sum(pulls, axis=0))
    off = lags[kept] - mean
    scatter = float(np.einsum("li,lij,lj->", off, informations[kept], off)) / max(3 * (int(kept.sum()) - 1), 1)
    covariance = np.linalg.inv(known) * max(scatter, 1.0) + FLOOR_PX**2 * np.eye(3)
    votes = support * kept
    return Combined(
        mean,
        float(np.average([s.correlation for s in shifts], weights=votes)),
        np.asarray(np.average([s.sharpness for s in shifts], axis=0, weights=votes), dtype=np.float64),
        np.asarray(np.linalg.inv(covariance) * share, dtype=np.float64),
    )
