"""The slow illumination of a stitched volume: found on a coarse copy, taken off block by block."""

from cloudreg.illumination.by_regions import estimate_bias_by_regions
from cloudreg.illumination.correct import correct_volume
from cloudreg.illumination.estimate import estimate_bias
from cloudreg.illumination.evened import evened, find_stripes
from cloudreg.illumination.field import BiasField, load_bias, save_bias

__all__ = [
    "BiasField",
    "correct_volume",
    "estimate_bias",
    "estimate_bias_by_regions",
    "evened",
    "find_stripes",
    "load_bias",
    "save_bias",
]
