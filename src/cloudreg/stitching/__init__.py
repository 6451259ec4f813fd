"""Tiles to one volume: how neighbours are displaced, where all tiles lie, and their fusion."""

from cloudreg.stitching.alignment import align
from cloudreg.stitching.fusion import fuse
from cloudreg.stitching.links import Link, measure_links
from cloudreg.stitching.placement import Placement, place_tiles

__all__ = ["Link", "Placement", "align", "fuse", "measure_links", "place_tiles"]
