"""Finding the background and the flat field of a channel's tiles.

Planes at the same depths of all tiles are read as means over blocks; the background is where the darkest begin. Of the
methods for the flat field, the first is the best on all tiles with overlaps that we know:

- ``combined``: the overlaps of neighbours show the same tissue at two places of the camera, so their ratio is the
  field's; where they leave a choice, the mean tile and a smooth field's usual fall-off have a say.
- ``mean``: the mean tile, of tissue only, each plane relative to its own level. Empty space does not shade it, but the
  shape of a brain does where tiles are few.
- ``n4``: the N4 field of the plain mean tile, as CloudReg did in 2021.
- ``basic``: BaSiC, by the library BaSiCPy, on planes without the background, weighed by where there is tissue.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError, MissingExtraError
from cloudreg.execution import Engine
from cloudreg.execution.progress import say
from cloudreg.flatfield.fit import basis, combine, evaluate, witness_of_mean
from cloudreg.flatfield.mean_tile import find_background, find_mean_tile, n4_field, usual_brightness
from cloudreg.flatfield.overlaps import compare_overlaps
from cloudreg.flatfield.sampling import block_centres, read_samples
from cloudreg.flatfield.shading import Shading
from cloudreg.settings import ShadingSettings
from cloudreg.tiles import Acquisition

# Parts of the usual brightness: what counts as tissue, and what is bright enough for a ratio.
_TISSUE = 0.25
_BRIGHT = 0.5


def estimate_shading(acquisition: Acquisition, channel: int, settings: ShadingSettings, engine: Engine) -> Shading:
    """Find the background and the flat field of one channel.

    Parameters
    ----------
    acquisition, channel
        Only some of the planes are read; lost ones are left out.
    settings
        With the method ``none``, only the background is found, and the flat field is 1. The background must be given
        where tissue fills all of every plane.
    engine
        Reads the planes, a task one of them. All samples are held at once, as block means.

    Raises
    ------
    InputError
        If there is no such channel, it shows nothing, or the method is ``basic`` and its library is not installed.
    """
    acquisition.require_channel(channel)
    if settings.method == "basic":
        _require_basicpy()
    samples = read_samples(
        acquisition, channel, samples=settings.samples, working_side=settings.working_side, engine=engine
    )
    _, height, width = acquisition.tile_shape
    background = settings.background
    if background is None:
        background = find_background(samples.blocks[samples.present])
    if settings.method == "none":
        return Shading(np.ones((height, width), np.float32), background)
    light = np.where(samples.present[..., None, None], samples.blocks - np.float32(background), np.float32(0))
    usual = usual_brightness(light)
    if not usual > 0:
        raise InputError(f"expected tissue in channel {channel} of {acquisition.path}, its planes are constant")

    y, x = ((2 * block_centres(n, samples.block_px) + 1) / n - 1 for n in (height, width))
    places = [(2 * np.arange(n) + 1) / n - 1 for n in (height, width)]
    if settings.method == "n4":
        plain = light[samples.present].mean(axis=0, dtype=np.float64)
        log = _between(n4_field(plain, settings.spline_distance_fraction), (y, x), places)
    elif settings.method == "basic":
        planes = light[samples.present]
        log = _between(np.log(_basic_field(planes, planes > _TISSUE * usual)), (y, x), places)
    else:
        functions = basis(y, x)
        witness = witness_of_mean(find_mean_tile(light, light > _TISSUE * usual), functions)
        coefficients = witness.mean
        if settings.method == "combined":
            overlaps = compare_overlaps(acquisition, light, functions, samples.block_px, _BRIGHT * usual)
            coefficients = combine(witness, overlaps)
        log = evaluate(coefficients, *places)
    flat = np.exp(log)
    flat /= flat.mean()
    say(f"channel {channel}: background {background:.1f}, flat field {flat.min():.2f} to {flat.max():.2f}")
    return Shading(flat.astype(np.float32), background)


def _require_basicpy() -> None:
    """Say at once that the library is not there."""
    if find_spec("basicpy") is not None:
        return
    if sys.version_info >= (3, 13):
        raise InputError(
            "shading method basic needs BaSiCPy, and that a scipy which there is for Python 3.11 and 3.12 only: choose "
            "combined, mean or n4, or an environment of that Python with 'cloudreg[basic]'"
        )
    raise MissingExtraError("basicpy", "basic")


def _basic_field(planes: NDArray[np.float32], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the flat field that BaSiC finds on blocks (Peng et al. 2017, doi:10.1038/ncomms14836).

    What is empty is as bright everywhere, and would make the field even: only tissue is given its full weight.
    """
    from basicpy import BaSiC

    shown = tissue.any(axis=(1, 2))
    # On a GPU the sums would come out otherwise.
    basic = BaSiC(get_darkfield=False, device="cpu")
    basic.fit(np.maximum(planes[shown], 0), fitting_weight=tissue[shown].astype(np.float32))
    return np.asarray(basic.flatfield, dtype=np.float64)


def _between(
    values: NDArray[np.float64],
    at: tuple[NDArray[np.float64], NDArray[np.float64]],
    places: list[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Interpolate values at the blocks' centres linearly at other rows and columns, and on beyond the outermost."""
    from scipy.interpolate import RegularGridInterpolator

    table = RegularGridInterpolator(at, values, bounds_error=False, fill_value=None)
    return np.asarray(table(tuple(np.meshgrid(*places, indexing="ij"))))
