"""The mean tile, made so that a sparse brain does not show in it, and the N4 field of a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LARGE_BLOCKS = 24
_LEAST_STEP = 4
_PASSES = 10
_OUTLIER = 2.0
_SCATTER_PLANES = 64
# Each level halves the distance of the control points.
_N4_ITERATIONS = (50, 50, 50)


@dataclass(frozen=True)
class MeanTile:
    """The common factor of many planes.

    Parameters
    ----------
    log
        (rows, columns), logarithm of the factor, of mean 0; 0 where nothing was seen.
    weight
        (rows, columns), from how many planes; 0 where nothing was seen.
    residual
        (tiles, rows, columns), weighted sum over each tile's planes of what differs from level + factor.
    """

    log: NDArray[np.float64]
    weight: NDArray[np.float64]
    residual: NDArray[np.float64]


def find_background(blocks: NDArray[np.float32]) -> float:
    """Return what the camera reads without light.

    It is the median of the large blocks that are as dark as the darkest half percent, but for noise. So it is found
    where most of the field is empty, where noise makes some blocks darker, and where tissue fills nearly all of it;
    where nothing is empty, it can't be found.

    Parameters
    ----------
    blocks
        (planes, rows, columns), means over blocks.
    """
    _, rows, columns = blocks.shape
    # Small enough to fit in an empty corner, and large enough to average the noise and to measure it.
    step = min(max(_LEAST_STEP, min(rows, columns) // _LARGE_BLOCKS), rows, columns)
    whole = blocks[:, : rows // step * step, : columns // step * step]
    parts = whole.reshape(len(blocks), rows // step, step, columns // step, step)
    large = parts.mean(axis=(2, 4), dtype=np.float64)
    dark = large <= np.percentile(large, 0.5)
    noise = float(np.median(parts.std(axis=(2, 4))[dark])) / step
    return float(np.median(large[large <= large[dark].max() + 4 * noise]))


def usual_brightness(light: NDArray[np.float32]) -> float:
    """Return the usual brightness of tissue, given that above the background; 0 where nothing is bright."""
    # What is nearly dark is no tissue; of the rest, the median is not moved by a few bright cells.
    lit = light[light > 0.05 * np.percentile(light, 99)]
    return float(np.median(lit)) if lit.size else 0.0


def find_mean_tile(light: NDArray[np.float32], tissue: NDArray[np.bool_]) -> MeanTile:
    """Split planes into one level each and one factor common to all, by alternating robust means of logarithms.

    A plane counts only where it shows tissue, relative to its own level, so half-empty and dim planes neither darken
    nor brighten the factor. What is far from level times factor, a vessel or a bright nucleus, loses its weight.

    Parameters
    ----------
    light, tissue
        (tiles, depths, rows, columns): brightness above the background, and whether it is tissue.
    """
    tiles, depths, *shape = light.shape
    log = np.log(np.maximum(light, 1e-3, dtype=np.float32)).reshape(tiles * depths, -1)
    shown = tissue.reshape(log.shape)
    weight, rest = shown.astype(np.float32), np.empty_like(log)
    factor, seen = np.zeros(log.shape[1]), np.zeros(log.shape[1])
    # Some of the planes tell the scatter as well as all do.
    few = slice(None, None, max(1, len(log) // _SCATTER_PLANES))
    for _ in range(_PASSES):
        level = _fit_factor(log, weight, factor, seen)
        factor -= (factor * seen).sum() / max(seen.sum(), 1e-6)
        _subtract(log, level, factor, rest)
        scale = 1.4826 * float(np.median(np.abs(rest[few][shown[few]]))) + 1e-6
        _weigh(rest, shown, np.float32(_OUTLIER * scale), weight)
    seen = weight.sum(axis=0, dtype=np.float64)
    factor[seen <= 0] = 0
    weight *= rest
    residual = weight.reshape(tiles, depths, *shape).sum(axis=1, dtype=np.float64)
    return MeanTile(factor.reshape(shape), seen.reshape(shape), residual)


@njit(cache=True, nogil=True)
def _fit_factor(
    log: NDArray[np.float32], weight: NDArray[np.float32], factor: NDArray[np.float64], seen: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the level of each plane (planes, pixels) for a factor; then replace the factor by that for the levels."""
    planes, pixels = log.shape
    level = np.zeros(planes)
    total = np.zeros(pixels)
    seen[:] = 0
    for k in range(planes):
        whole, above = 0.0, 0.0
        for i in range(pixels):
            whole += weight[k, i]
            above += weight[k, i] * (log[k, i] - factor[i])
        level[k] = above / max(whole, 1e-6)
        for i in range(pixels):
            seen[i] += weight[k, i]
            total[i] += weight[k, i] * (log[k, i] - level[k])
    for i in range(pixels):
        factor[i] = total[i] / max(seen[i], 1e-6)
    return level


@njit(cache=True, nogil=True)
def _subtract(
    log: NDArray[np.float32], level: NDArray[np.float64], factor: NDArray[np.float64], rest: NDArray[np.float32]
) -> None:
    for k in range(log.shape[0]):
        for i in range(log.shape[1]):
            rest[k, i] = log[k, i] - level[k] - factor[i]


@njit(cache=True, nogil=True)
def _weigh(rest: NDArray[np.float32], shown: NDArray[np.bool_], width: float, weight: NDArray[np.float32]) -> None:
    """Fill in Cauchy weights."""
    for k in range(rest.shape[0]):
        for i in range(rest.shape[1]):
            part = rest[k, i] / width
            weight[k, i] = shown[k, i] / (np.float32(1) + part * part)


def n4_field(tile: NDArray[np.float64], spline_distance_fraction: float) -> NDArray[np.float64]:
    """Return the logarithm of the N4 bias field (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908) of a tile.

    Parameters
    ----------
    tile
        (rows, columns), brightness; places that are not above 0 are masked.
    spline_distance_fraction
        Distance of the control points at the first of three levels, as a fraction of the tile's longer side.
    """
    import SimpleITK as sitk

    rows, columns = tile.shape
    image = sitk.GetImageFromArray(np.maximum(tile, 0).astype(np.float32))
    mask = sitk.GetImageFromArray((tile > 0).astype(np.uint8))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(_N4_ITERATIONS))
    n4.SetConvergenceThreshold(1e-6)
    # Sums over threads are rounded in another order on another number of cores.
    n4.SetNumberOfThreads(1)
    spacing = spline_distance_fraction * max(rows, columns)
    n4.SetNumberOfControlPoints([max(1, round(n / spacing)) + 3 for n in (columns, rows)])
    n4.Execute(image, mask)
    field: NDArray[np.float64] = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).astype(np.float64)
    return field
