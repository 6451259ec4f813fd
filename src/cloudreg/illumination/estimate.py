"""Finding the illumination of a volume.

1. The volume is averaged to voxels so large that at most a given number of them is left.
2. The foreground is what Otsu's threshold keeps of the logarithms; voxels that were not observed are left out.
3. N4 fits a smooth logarithmic field to the foreground.
4. The field is scaled to a mean of 1 over the foreground, so that grey values keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination.field import BiasField
from cloudreg.io import Volume, read_resampled
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Grid

Array = NDArray[Any]

# A coarse voxel counts as observed if most of it was.
_OBSERVED = 0.5
# Otsu's two classes are tissue and background only if one is this many times brighter than the other.
_CONTRAST = 2.0
_FEWEST_VOXELS = 200
_ITERATIONS = 30
_CONVERGED = 1e-3


def estimate_bias(
    volume: Volume, channel: int, settings: IlluminationSettings, *, engine: Engine | None = None
) -> BiasField:
    """Find the slow illumination of one channel of a volume.

    Parameters
    ----------
    volume, channel
        A volume of brightness; 0 means not observed.
    settings
        Working resolution and how slow the field is.
    engine
        Reads the volume; by default this thread does.

    Returns
    -------
    BiasField
        The same on any machine and with any number of workers. 1 everywhere for ``method`` "none".

    Raises
    ------
    InputError
        If the volume holds labels, a single section, what is no number, or nothing to find a field on.

    References
    ----------
    N. J. Tustison et al., "N4ITK: improved N3 bias correction", IEEE Trans. Med. Imaging 29 (2010).
    """
    if volume.kind == "labels":
        raise InputError(f"expected a volume of brightness at {volume.path}, got labels: they have no illumination")
    if settings.method == "none":
        grid = volume.grid.downsampled(volume.grid.shape)
        return BiasField(grid, np.zeros(grid.shape, dtype=np.float32))
    voxel_um = working_voxel_um(volume, settings)
    values, grid, fraction = read_resampled(volume, voxel_um, channel=channel, engine=engine, weight=True)
    require_findable(volume, values, grid)
    observed = (fraction >= _OBSERVED) & (values > 0)
    if observed.sum() < _FEWEST_VOXELS or values[observed].min() == values[observed].max():
        raise InputError(
            f"expected tissue in channel {channel} of {volume.path}, found {int(observed.sum())} voxels of about "
            f"{voxel_um:.3g} um with different values: choose illumination method none"
        )
    # Zeros in a block that was seen in part darken its mean.
    values[observed] /= fraction[observed]
    mask = foreground(values, observed)
    log_field = n4_log_field(values, mask, _elements(grid, settings.spline_distance_um))
    log_field -= np.log(np.mean(np.exp(log_field[mask], dtype=np.float64)))
    return BiasField(grid, log_field)


def require_findable(volume: Volume, values: NDArray[np.float32], grid: Grid) -> None:
    """Refuse what no field can be found on.

    Parameters
    ----------
    volume
        What was read.
    values, grid
        The volume at working resolution, (z, y, x).

    Raises
    ------
    InputError
        If a value is no number, or there is one voxel only along an axis.
    """
    if grid.thin_axes:
        raise InputError(
            f"expected a volume, got {volume.path}, which is one voxel of {max(grid.voxel_size_um):g} um thick along "
            f"{' and '.join(grid.thin_axes)}: the light of a single section can't be evened out"
        )
    require_numbers(values, volume.path)


def require_numbers(values: Array, path: str) -> None:
    """Refuse voxels that are NaN or infinite: a field found on them, and a pyramid made of them, would be too."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path} holds values that are no numbers (NaN or infinite): clean it first")


def working_voxel_um(volume: Volume, settings: IlluminationSettings) -> float:
    """Return the voxel size on which the field is found: as set, or coarser where that gives too many voxels."""
    voxel_um = settings.working_voxel_um
    while True:
        level = volume.levels[volume.level_near(voxel_um)]
        steps = [max(1, math.floor(voxel_um / s + 0.5)) for s in level.voxel_size_um]
        if math.prod(level.downsampled(steps).shape) <= settings.working_voxels:
            return voxel_um
        voxel_um *= 1.1


def foreground(values: Array, observed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the observed voxels that show tissue.

    Parameters
    ----------
    values
        Brightness, above 0 where observed.
    observed
        Same shape.

    Returns
    -------
    ndarray of bool
        The brighter of Otsu's classes of the logarithms; all that was observed where the two are hardly different.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Syst. Man Cybern. 9 (1979).
    """
    logs = np.log(values[observed].astype(np.float64))
    counts, edges = np.histogram(logs, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, total = len(logs) - below, float((counts * centres).sum())
    valid = (below > 0) & (above > 0)
    low, high = sums / np.maximum(below, 1), (total - sums) / np.maximum(above, 1)
    between = np.where(valid, below * above * (high - low) ** 2, -1)
    best = int(np.argmax(between))
    if high[best] - low[best] < math.log(_CONTRAST):
        return observed
    return observed & (values > math.exp(edges[best + 1]))


def n4_log_field(values: Array, mask: NDArray[np.bool_], elements: Sequence[int]) -> NDArray[np.float32]:
    """Return the logarithm of the illumination that N4 finds.

    Parameters
    ----------
    values
        Brightness, above 0 in the mask.
    mask
        Voxels that N4 may look at.
    elements
        Spline elements along each axis of the finest of its fits; the fits before are half as fine each.

    Returns
    -------
    ndarray, float32
        Of the values' shape, also outside the mask.

    Notes
    -----
    N4 sums in parallel, and in another order for another number of threads: one thread gives the same field
    everywhere.
    """
    import SimpleITK as sitk

    levels = 1 + math.ceil(math.log2(max(elements)))
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([_ITERATIONS] * levels)
    correction.SetConvergenceThreshold(_CONVERGED)
    # Cubic splines have 3 control points more than elements; SimpleITK's axes are x y z.
    correction.SetNumberOfControlPoints([3 + math.ceil(n / 2 ** (levels - 1)) for n in elements[::-1]])
    image = sitk.GetImageFromArray(np.where(mask, values, 0).astype(np.float32))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        correction.SetNumberOfThreads(1)
        correction.Execute(image, sitk.GetImageFromArray(mask.astype(np.uint8)))
        field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return np.asarray(field, dtype=np.float32)


def _elements(grid: Grid, distance_um: float) -> list[int]:
    """Spline elements of about a given length along each axis, at least one."""
    return [max(1, round(length / distance_um)) for length in grid.size_um.tolist()]
