"""The illumination of a volume whose regions are known.

A brain's brightness differs from region to region, and slowly: olfactory bulb, cortex and cerebellum lie in different
places. From the picture alone this can't be told from slow light, and N4 and its like take one for the other. Where a
registration has named the regions, it can: within a region, tissue is alike, and what changes is the light. So each
region has a brightness of its own, both sides the same, and one smooth field is common to all:

    log brightness = region + field + rest

The field is a sum of products of Legendre polynomials. Voxels at the borders of regions are left out, those far from
the rest lose their weight, and how large and how smooth the field is, is found by evidence (`cloudreg.flatfield.fit`).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination.estimate import require_findable
from cloudreg.illumination.field import BiasField
from cloudreg.io import Volume, read_resampled
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Grid

Array = NDArray[Any]

_DEGREE = 4
_ORDERS = [o for o in itertools.product(range(_DEGREE + 1), repeat=3) if 0 < sum(o) <= _DEGREE]
_SIZES = np.geomspace(0.01, 0.5, 8)
_FALLS = (0.1, 0.2, 0.3, 0.45, 0.65)
# The finest grid that the field is found on. Borders of regions should not take most of its voxels.
_VOXELS = 600_000
_FEWEST_VOXELS = 500
_SMALLEST_REGION = 20
_OBSERVED = 0.99
_OUTLIER = 2.0
_PASSES = 15


def estimate_bias_by_regions(
    volume: Volume, channel: int, labels: Volume, settings: IlluminationSettings, *, engine: Engine | None = None
) -> BiasField:
    """Find the slow illumination of one channel of a volume, given its regions.

    Parameters
    ----------
    volume, channel
        A volume of brightness; 0 means not observed.
    labels
        Region ids of the same tissue, 0 outside, such as ``labels_in_target`` of a registration; the same physical
        micrometres and axes, any voxel size.
    settings
        Working resolution.
    engine
        Reads the volume; by default this thread does.

    Returns
    -------
    BiasField
        Its mean is 1 over the regions.

    Raises
    ------
    InputError
        If the labels are none, have other axes, or hardly overlap the volume; if that is a single section, or holds
        what is no number.
    """
    if labels.kind != "labels":
        raise InputError(f"expected a volume of region ids at {labels.path}, got one of brightness")
    size = float(np.prod(volume.grid.size_um))
    voxel_um = max(settings.working_voxel_um, (size / _VOXELS) ** (1 / 3))
    values, grid, fraction = read_resampled(volume, voxel_um, channel=channel, engine=engine, weight=True)
    require_findable(volume, values, grid)
    ids = labels_on(labels, grid)
    inner = (ndimage.minimum_filter(ids, 3) == ids) & (ndimage.maximum_filter(ids, 3) == ids) & (ids > 0)
    inner &= (fraction >= _OBSERVED) & (values > 0)
    _, region, count = np.unique(ids[inner], return_inverse=True, return_counts=True)
    large = count[region] >= _SMALLEST_REGION
    if large.sum() < _FEWEST_VOXELS:
        raise InputError(
            f"expected regions of {labels.path} on the tissue of {volume.path}, found {int(large.sum())} voxels of "
            f"{voxel_um:.3g} um inside regions: give the labels that were registered to this volume, or choose "
            "illumination method n4"
        )
    places = np.argwhere(inner)[large]
    region = np.unique(region[large], return_inverse=True)[1]
    along = [legvander((2 * np.arange(n) + 1) / n - 1, _DEGREE) for n in grid.shape]
    functions = np.stack(
        [math.prod(a[places[:, i], k] for i, (a, k) in enumerate(zip(along, order, strict=True))) for order in _ORDERS]
    )
    coefficients = fit_field(np.log(values[inner][large].astype(np.float64)), region, functions)
    # A library's matrix products add in an order that depends on its threads and on where the arrays lie. Rounded
    # coefficients, and sums in a fixed order, are the same each time.
    field = np.zeros(grid.shape)
    for order, value in zip(_ORDERS, coefficients.round(6), strict=True):
        z, y, x = (a[:, k] for a, k in zip(along, order, strict=True))
        field += value * z[:, None, None] * y[:, None] * x
    field -= np.log(np.mean(np.exp(field[inner])))
    return BiasField(grid, field.astype(np.float32))


def fit_field(log: Array, region: Array, functions: Array) -> NDArray[np.float64]:
    """Fit ``log = level of the region + coefficients @ functions``.

    Parameters
    ----------
    log
        (n,).
    region
        (n,), numbers from 0 without a gap.
    functions
        (functions, n).

    Returns
    -------
    ndarray
        (functions,), the coefficients.
    """
    from cloudreg.flatfield.fit import evidence_average

    degrees = np.array([sum(order) for order in _ORDERS])
    usual = np.array([(size * fall ** (degrees - 1.0)) ** -2 for size, fall in itertools.product(_SIZES, _FALLS)])
    coefficients = np.zeros(len(functions))
    weight = np.ones(len(log))
    for _ in range(_PASSES):
        count = np.bincount(region, weight)
        # Within its region, each voxel against the mean: this leaves the levels out.
        y = log - (np.bincount(region, weight * log) / count)[region]
        within = np.stack([f - (np.bincount(region, weight * f) / count)[region] for f in functions])
        rest = y - coefficients @ within
        scale = 1.4826 * float(np.median(np.abs(rest))) + 1e-6
        weight = 1 / (1 + (rest / (_OUTLIER * scale)) ** 2)
        # The rest of a region is tissue, alike over many voxels: each region's pull counts as one measurement.
        pulls = np.stack([np.bincount(region, weight * rest * f) for f in within])
        alone = np.stack([np.bincount(region, (weight * rest * f) ** 2) for f in within])
        together = max(1.0, float((pulls**2).sum() / max(alone.sum(), 1e-12)))
        variance = together * (float((weight * rest**2).sum() / weight.sum()) + 1e-12)
        weighted = within * (weight / variance)
        coefficients = evidence_average(weighted @ within.T, weighted @ y, usual)
    return coefficients


def labels_on(labels: Volume, grid: Grid) -> Array:
    """Return the nearest label at each voxel of a grid with the same axes; 0 beyond the labels."""
    level = labels.level_near(min(grid.voxel_size_um))
    stored = labels.levels[level]
    to_label = np.linalg.inv(stored.affine) @ grid.affine
    if not np.allclose(to_label[:3, :3], np.diag(np.diag(to_label[:3, :3])), atol=1e-6):
        raise InputError(f"the labels at {labels.path} and the volume have different axes: give labels on its grid")
    ids = labels.read(level=level)
    for axis, n in enumerate(grid.shape):
        nearest = np.rint(np.arange(n) * to_label[axis, axis] + to_label[axis, 3]).astype(int)
        inside = (nearest >= 0) & (nearest < ids.shape[axis])
        ids = ids.take(np.clip(nearest, 0, ids.shape[axis] - 1), axis)
        ids[tuple(~inside if a == axis else slice(None) for a in range(3))] = 0
    return np.asarray(ids)
