"""The slow illumination of a stitched volume: found on a coarse copy, taken off block by block."""

from cloudreg.illumination.by_regions import estimate_bias_by_regions
from cloudreg.illumination.correct import correct_volume
from cloudreg.illumination.estimate import estimate_bias
from cloudreg.illumination.field import BiasField, load_bias, save_bias
from cloudreg.illumination.modes import flow_to_modes
from cloudreg.illumination.pattern import common_pattern, divided

__all__ = [
    "BiasField",
    "common_pattern",
    "correct_volume",
    "divided",
    "estimate_bias",
    "estimate_bias_by_regions",
    "flow_to_modes",
    "load_bias",
    "save_bias",
]
