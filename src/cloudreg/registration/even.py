"""What light did to the target is taken off before it is normalised: the tiles' grid, then the slow illumination."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.illumination import BiasField, common_pattern, divided, flow_to_modes
from cloudreg.registration.levels import Image, otsu_threshold
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

_BLUR, _SMOOTH, _VOXEL = 1.5, 10.0, 2.0
"""In units of the solver (100 um in a mouse): stripes are narrower than some of the first, illumination is wider than
the second, and is looked for with voxels of the third."""


@dataclass(frozen=True)
class Evened:
    """A target without its uneven light.

    Parameters
    ----------
    values
        (z, y, x).
    bias
        The slow illumination that was taken off, if it was looked for.
    """

    values: NDArray[np.float32]
    bias: BiasField | None


def even_out(
    values: NDArray[np.float32],
    observed: NDArray[np.float32],
    grid: Grid,
    settings: RegistrationSettings,
    *,
    unit_um: float,
    mask: NDArray[np.float32] | None = None,
) -> Evened:
    """Take off what the settings ask for.

    Parameters
    ----------
    values
        (z, y, x): block means, zeros included.
    observed
        (z, y, x), 0 to 1: fraction of each block that was observed.
    grid
        Of both.
    settings
        Its ``grid_correction`` and ``bias_correction``.
    unit_um
        The solver's unit of length.
    mask
        (z, y, x), 0 to 1: the user's own data weight.
    """
    # What can't be used is said where the image is normalised.
    usable = bool(np.isfinite(values).all() and (observed > 0).any() and values.min() < values.max())
    if not usable:
        return Evened(values, None)
    if settings.grid_correction != "none":
        axis = "zyx".index(settings.grid_correction)
        pattern = common_pattern(values, observed, grid, axis=axis, blur_um=_BLUR * unit_um)
        values = divided(values, pattern, grid)
    bias = None
    if settings.bias_correction:
        mean = np.divide(values, observed, out=np.zeros_like(values), where=observed > 0)
        weight = observed if mask is None else observed * mask
        bias = _illumination(Image(mean, weight, grid).reduced(_VOXEL * unit_um), _SMOOTH * unit_um)
    return Evened(values if bias is None else divided(values, bias, grid), bias)


def _illumination(image: Image, smooth_um: float) -> BiasField | None:
    seen = image.weight > 0
    if not seen.any():
        return None
    tissue = image.values > otsu_threshold(image.values[seen])
    weight = np.where(tissue, image.weight, np.float32(0))
    return flow_to_modes(image.values, weight, image.grid, smooth_um=smooth_um)
