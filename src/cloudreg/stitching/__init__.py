"""Tiles to one volume: how neighbours are displaced, where all tiles lie, and their fusion."""

from cloudreg.stitching.alignment import Alignment, align, align_in_steps, reuse_alignment, write_steps
from cloudreg.stitching.fusion import fuse
from cloudreg.stitching.links import Link, measure_links
from cloudreg.stitching.placement import Placement, place_tiles
from cloudreg.stitching.tree import place_by_tree

__all__ = [
    "Alignment",
    "Link",
    "Placement",
    "align",
    "align_in_steps",
    "fuse",
    "measure_links",
    "place_by_tree",
    "place_tiles",
    "reuse_alignment",
    "write_steps",
]
