"""One shift out of those that several layers of planes gave for the same pair of tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.stitching.pairwise import Shift

# Layers within this distance of each other, in pixels, mean the same shift; this close, two are enough.
_SAME_PX = 2.0
_ENOUGH_PX = 0.2
# Sharpness, in 1/px^2, at which an axis has half its weight: a peak 14 pixels wide.
_HALF_SHARP = 0.005


def agree_closely(shifts: list[Shift]) -> bool:
    """Whether two of the layers agree so well that no other need be read."""
    lags = np.array([shift.lag_px for shift in shifts])
    distances = np.linalg.norm(lags[:, None] - lags, axis=2)[np.triu_indices(len(lags), 1)]
    return bool((distances < _ENOUGH_PX).any())


def combine_layers(shifts: list[Shift]) -> tuple[Shift, NDArray[np.float64]]:
    """Average the layers that agree with the best supported one.

    Parameters
    ----------
    shifts
        At least one, of the same pair of strips.

    Returns
    -------
    shift
        Weighted mean.
    weight
        (3,), 0..1: correlation squared times how sharp the peak is along each axis, times the share of the layers
        that agree.
    """
    lags = np.array([shift.lag_px for shift in shifts])
    weights = np.array([_weight(shift) for shift in shifts])
    close = np.linalg.norm(lags[:, None] - lags, axis=2) <= _SAME_PX
    kept = close[int(np.argmax(close @ weights.sum(axis=1)))]
    share = weights[kept].sum() / weights.sum()
    votes = weights.sum(axis=1) * kept
    mean = Shift(
        np.average(lags[kept], axis=0, weights=weights[kept]),
        float(np.average([s.correlation for s in shifts], weights=votes)),
        np.average([s.sharpness for s in shifts], axis=0, weights=votes),
    )
    return mean, weights[kept].mean(axis=0) * share


def _weight(shift: Shift) -> NDArray[np.float64]:
    sharpness = np.asarray(shift.sharpness, dtype=np.float64)
    return shift.correlation**2 * sharpness / (sharpness + _HALF_SHARP)
