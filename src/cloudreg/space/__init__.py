"""Where things are: grids in micrometres, anatomical letters, boxes of voxels.

Arrays are (c,) z, y, x. Every length is in micrometres and says so in its name.
"""

from cloudreg.space.boxes import Box, split
from cloudreg.space.grid import Grid
from cloudreg.space.orientation import axes_between, parse_orientation, proper_orientations

__all__ = ["Box", "Grid", "axes_between", "parse_orientation", "proper_orientations", "split"]
