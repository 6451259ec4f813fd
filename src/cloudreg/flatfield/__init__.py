"""Background and vignetting of the tiles."""

from cloudreg.flatfield.estimate import estimate_shading
from cloudreg.flatfield.shading import Shading, load_shading, save_shading

__all__ = ["Shading", "estimate_shading", "load_shading", "save_shading"]
