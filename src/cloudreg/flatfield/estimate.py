"""Finding the background and the flat field of a channel's tiles.

1. Planes at the same depths of all tiles are read as means over blocks; the background is where the darkest begin.
2. Their mean tile is made of tissue only, each plane relative to its own level, and N4 finds its field.
3. The brain is still in that field where tiles are few. The overlaps of neighbours show the same tissue at two places
   of the camera: they and the field are combined into a smooth one, each weighted by how sure it is.
"""

from __future__ import annotations

import numpy as np

from cloudreg.errors import InputError
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
        If there is no such channel, or it shows nothing.
    """
    acquisition.require_channel(channel)
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

    mean = find_mean_tile(light, light > _TISSUE * usual)
    field = n4_field(mean, settings.spline_distance_fraction)
    functions = basis(
        2 * (block_centres(height, samples.block_px) + 0.5) / height - 1,
        2 * (block_centres(width, samples.block_px) + 0.5) / width - 1,
    )
    overlaps = compare_overlaps(acquisition, light, functions, samples.block_px, _BRIGHT * usual)
    coefficients = combine(witness_of_mean(field, mean, functions), overlaps)
    y, x = ((2 * np.arange(n) + 1) / n - 1 for n in (height, width))
    flat = np.exp(evaluate(coefficients, y, x))
    flat /= flat.mean()
    say(f"channel {channel}: background {background:.1f}, flat field {flat.min():.2f} to {flat.max():.2f}")
    return Shading(flat.astype(np.float32), background)
