"""A slow field of illumination from the histogram alone: greys drift to the nearest peak, neighbours together.

1. The logarithms of the greys are counted; the counts are smoothed.
2. Each voxel says whether more voxels are a little brighter than it, or a little darker: +1 or -1.
3. The mean of that over a wide Gaussian neighbourhood is a small step of the field there.
4. Again, until the field stands still.

The sign makes flat parts of the histogram count as much as steep ones. What was not observed, and what is no tissue,
has no voice, and the edges of the volume are no edges of tissue. The idea is that of the histogram
flow of Tward et al., bioRxiv 2020.03.22.002618, with data weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.illumination.field import BiasField
from cloudreg.space import Grid

_BINS = 1000
_WIDTH = 0.25
"""Standard deviation of the histogram's smoothing, in standard deviations of the greys: finer peaks are noise, and a
field as large as the gap between two classes leaves peaks where there are none."""

_STEP, _STILL, _MOST_STEPS = 0.1, 1e-3, 60
"""Largest step, step below which it stands still, and number of steps, in standard deviations of the greys."""


def flow_to_modes(
    values: NDArray[np.float32], weight: NDArray[np.float32], grid: Grid, *, smooth_um: float
) -> BiasField:
    """Find the slow illumination of an image of a few grey classes.

    Parameters
    ----------
    values
        (z, y, x): brightness; only voxels above 0 count.
    weight
        (z, y, x), 0 to 1: of each voxel; 0 where there is no tissue or nothing was observed.
    grid
        Of both.
    smooth_um
        Standard deviation of the Gaussian that the field is smoothed with.

    Returns
    -------
    BiasField
        On the same grid.

    Raises
    ------
    InputError
        If no voxel of any weight is brighter than 0.
    """
    weight = np.where(values > 0, weight, np.float32(0)).astype(np.float32)
    tissue = weight > 0
    if not tissue.any():
        raise InputError("expected tissue to find its illumination in, found none: check the channel and the mask")
    w = weight[tissue].astype(np.float64)
    greys = np.log(values[tissue].astype(np.float64))
    sigma = [smooth_um / v for v in grid.voxel_size_um]
    around = _smoothed(weight, sigma)
    field = np.zeros(values.shape, dtype=np.float32)
    for _ in range(_MOST_STEPS):
        even = greys - field[tissue].astype(np.float64)
        spread = _deviation(even, w)
        if not spread > 0:
            break
        votes = np.zeros(values.shape, dtype=np.float32)
        votes[tissue] = w * _uphill(even, w, spread)
        step = _STEP * spread * _smoothed(votes, sigma) / np.maximum(around, 1e-6)
        field -= step.astype(np.float32)
        if np.abs(step[tissue]).max() < _STILL * spread:
            break
    # The brightness of the whole stays.
    field -= np.float32(np.log(np.average(np.exp(field[tissue].astype(np.float64)), weights=w)))
    return BiasField(grid, field)


def _uphill(greys: NDArray[np.float64], weight: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    """Return for each grey to which side the histogram rises: 1, -1 or 0."""
    from scipy.ndimage import gaussian_filter1d

    middle = np.average(greys, weights=weight)
    low, high = max(greys.min(), middle - 5 * spread), min(greys.max(), middle + 5 * spread)
    size = (high - low) / _BINS
    if not size > 0:
        return np.zeros_like(greys)
    counts, edges = np.histogram(greys, bins=_BINS, range=(low, high), weights=weight)
    slope = np.gradient(gaussian_filter1d(counts, _WIDTH * spread / size, mode="constant", truncate=5))
    return np.asarray(np.sign(np.interp(greys, (edges[1:] + edges[:-1]) / 2, slope)))


def _deviation(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    middle = np.average(values, weights=weight)
    return float(np.sqrt(np.average((values - middle) ** 2, weights=weight)))


def _smoothed(array: NDArray[np.float32], sigma: list[float]) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(array, sigma, mode="constant", truncate=3))
