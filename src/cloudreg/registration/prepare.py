"""From grey values as stored to the normalised, weighted image that the solver sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume, read_resampled
from cloudreg.registration.levels import Image, greys_of, tissue_between
from cloudreg.registration.threads import together
from cloudreg.space import Grid

_BRIGHTEST = 1.6
"""Normalised values are clipped here: a saturated blob is an outlier, not a scale."""

_DARK, _MIDDLE = 0.5, 0.65
"""Where the median of the tissue is less than the first of the bright end, greys are compressed until it is the second,
as in most images: a few bright layers of a Nissl stain would else leave the rest of the brain next to no contrast."""

_LEAST_KNEE = 0.01
"""The smallest grey at which the compression bends: below lies the noise of the background."""

_ROUNDING = 1e-3
"""Of a voxel, by which grids that are meant to end together may miss."""

_GAP = 0.06
"""Gaps between labels that are closed, in sides of a cube as large as what is labelled."""

_RIM = 3
"""What the labels of a template leave out, in the solver's units, is brain only where it is thicker than twice this."""

_LEAST_SHARE, _MOST_SHARE = 0.05, 0.8
"""Part of the template's foreground that is labelled, for the rest to be a head around the brain."""


def prepare(
    values: NDArray[np.float32],
    observed: NDArray[np.float32],
    grid: Grid,
    *,
    name: str,
    missing_data: bool,
    mask: NDArray[np.float32] | None = None,
) -> Image:
    """Normalise an image and decide what was observed.

    Parameters
    ----------
    values
        (z, y, x): block means, zeros included.
    observed
        (z, y, x): fraction of non-zero native voxels in each block.
    grid
        Of both.
    name
        ``"target"`` or ``"template"``, for messages.
    missing_data
        Take zeros for lost data where they can't be background.
    mask
        (z, y, x), 0 to 1: the user's own data weight.

    Returns
    -------
    Image
        Background near 0, the bright end of the tissue near 1.

    Raises
    ------
    InputError
        If a value is no number, the image is constant, or nothing of it was observed.

    Notes
    -----
    Zero may mean "not imaged" or "black". Where the background around the brain is mostly exact zeros, zeros are
    black, except in planes that hold nothing else inside the brain's extent: those were lost.
    """
    if not np.isfinite(values).all():
        raise InputError(f"the {name} holds values that are no numbers (NaN or infinite): clean it first")
    if values.min() == values.max():
        raise InputError(f"the {name} has the same value {values.min():g} everywhere: check the path and the channel")
    weight = observed if missing_data else np.ones_like(observed)
    seen = observed > 0
    told = seen if mask is None else seen & (mask > 0)
    if not told.any():
        raise InputError(f"nothing of the {name} has any weight: check the mask")
    threshold, highest = tissue_between(greys_of(values, told))
    if missing_data and _zeros_are_background(values, observed, threshold):
        weight = np.ones_like(observed)
        for lost in _lost_planes(values, threshold):
            weight[lost] = 0
    # What was observed of a block explains it; the zeros in it do not.
    mean = np.divide(values, observed, out=np.zeros_like(values), where=seen) if weight is observed else values
    if mask is not None:
        weight = weight * mask
    used = weight > 0
    if not used.any():
        raise InputError(f"nothing of the {name} has any weight: check the mask")
    greys = greys_of(mean, used)
    dark, tissue = greys[greys < threshold], greys[(greys >= threshold) & (greys < highest)]
    background = float(np.median(dark)) if dark.size else 0.0
    bright = float(np.quantile(tissue, 0.95)) if tissue.size else float(mean[used].max())
    if not bright > background:
        raise InputError(f"the {name} has no tissue brighter than its background: check the channel")
    normalised = (mean - np.float32(background)) / np.float32(bright - background)
    middle = (float(np.median(tissue)) - background) / (bright - background) if tissue.size else 1.0
    if middle < _DARK:
        normalised = _compressed(normalised, middle)
    normalised = np.clip(normalised, -0.5, _BRIGHTEST).astype(np.float32)
    return Image(np.where(used, normalised, 0).astype(np.float32), weight.astype(np.float32), grid)


def _compressed(values: NDArray[np.float32], middle: float) -> NDArray[np.float32]:
    """Return greys of which 0 and 1 stay and ``middle`` becomes `_MIDDLE`: linear in the dark, logarithmic above."""
    from scipy.optimize import brentq

    def excess(knee: float) -> float:
        return float(np.arcsinh(middle / knee) / np.arcsinh(1 / knee)) - _MIDDLE

    # A brain nearly as dark as the air around it is compressed as far as that makes sense.
    knee = brentq(excess, _LEAST_KNEE, 10.0) if excess(_LEAST_KNEE) > 0 else _LEAST_KNEE
    return np.asarray(np.arcsinh(values / np.float32(knee)) / np.float32(np.arcsinh(1 / knee)))


def labelled_part(template: Image, labels: Volume, engine: Engine) -> Image | None:
    """Return the template with nothing but what lies within its labels, which a head has more than.

    Parameters
    ----------
    template
        Normalised.
    labels
        Region ids on any grid.
    engine
        For reading them.

    Returns
    -------
    Image or None
        None where the labels reach as far as the template's foreground, or fill so little of it that they are no brain.
    """
    from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes

    _, own, filled = read_resampled(labels, max(template.grid.voxel_size_um), engine=engine, weight=True)
    inside = sampled(filled, np.linalg.inv(own.affine) @ template.grid.affine, template.grid.shape) > 0.3
    # Labels may leave out white matter and ventricles; what they surround is brain.
    gap = max(1, round(_GAP * inside.sum() ** (1 / 3)))
    padded = np.pad(inside, 2 * gap)
    padded = binary_fill_holes(binary_closing(padded, iterations=gap))
    brain = binary_dilation(padded, iterations=1)[(slice(2 * gap, -2 * gap),) * 3]
    share = float((brain & template.foreground).sum() / max(1, template.foreground.sum()))
    if not _LEAST_SHARE < share < _MOST_SHARE:
        return None
    return Image(np.where(brain, template.values, np.float32(0)), template.weight, template.grid)


def completed(brain: Image, template: Image, target: Image, to_atlas: NDArray[np.float64], unit_um: float) -> Image:
    """Return the labelled part of a template with what its labels leave out of the brain that the target shows.

    Labels of the cortex and the nuclei know nothing of white matter, ventricles and brain stem. What of these lies
    far from all labels is told from the head around the brain by the target, which shows the one and not the other.

    Parameters
    ----------
    brain
        From `labelled_part`.
    template
        The whole, on the same grid.
    target
        Normalised.
    to_atlas
        4 x 4, target um to atlas um, good to within ``3 * unit_um``.
    unit_um
        The solver's unit of length.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    step = np.linalg.inv(target.grid.affine) @ np.linalg.inv(to_atlas) @ template.grid.affine
    tissue = binary_fill_holes(target.foreground).astype(np.float32)
    seen = sampled(tissue, step, template.grid.shape) > 0.5
    left_out = seen & (brain.values == 0)
    # A rim around the labels, no thicker than the affine may be wrong, is no brain that they left out.
    reach = max(_RIM * unit_um, *template.grid.voxel_size_um)
    deep = distance_transform_edt(left_out, sampling=template.grid.voxel_size_um) > reach
    if not deep.any():
        return brain
    added = left_out & (distance_transform_edt(~deep, sampling=template.grid.voxel_size_um) < 2 * reach)
    whole = binary_fill_holes(added | (brain.values != 0))
    return Image(np.where(whole, template.values, np.float32(0)), brain.weight, brain.grid)


def sampled(values: NDArray[np.float32], step: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Interpolate an image at ``step`` (4 x 4) times the indices of an array of ``shape``.

    Voxels reach to their faces: it is 0 only beyond the outermost of these, and no border fades.
    """
    from scipy.ndimage import map_coordinates

    result = np.empty(shape, dtype=np.float32)
    end = np.array(values.shape)[:, None, None] - 0.5 + _ROUNDING
    plane = np.tensordot(step[:3, 1:3], np.indices(shape[1:]), 1) + step[:3, 3, None, None]

    def fill(z: int) -> None:
        index = plane + step[:3, 0, None, None] * z
        inside = ((index > -0.5 - _ROUNDING) & (index < end)).all(axis=0)
        map_coordinates(values, index, output=result[z], order=1, mode="nearest")
        result[z][~inside] = 0

    together(fill, range(shape[0]))
    return result


def _zeros_are_background(values: NDArray[np.float32], observed: NDArray[np.float32], threshold: float) -> bool:
    dark = values < threshold
    return float(np.mean(observed[dark] == 0)) > 0.5 if dark.any() else False


def _lost_planes(values: NDArray[np.float32], threshold: float) -> list[tuple[slice | int, ...]]:
    """Return indices of the planes without a non-zero voxel between planes with tissue, along each axis."""
    lost: list[tuple[slice | int, ...]] = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        tissue = np.flatnonzero((values > threshold).mean(axis=others) > 0.02)
        empty = np.flatnonzero((values == 0).all(axis=others))
        if tissue.size:
            inside = empty[(empty > tissue[0]) & (empty < tissue[-1])]
            lost += [tuple(int(i) if k == axis else slice(None) for k in range(3)) for i in inside]
    return lost
