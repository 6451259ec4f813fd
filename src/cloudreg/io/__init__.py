"""Volumes on disk: open, read, create and write them, in every format, in z y x and micrometres."""

from cloudreg.io.convert import convert
from cloudreg.io.cost import describe_cost
from cloudreg.io.create import create_volume
from cloudreg.io.describe import describe
from cloudreg.io.downsample import downsample
from cloudreg.io.dtypes import Kind, to_dtype
from cloudreg.io.existing import remove_volume
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.opening import open_volume
from cloudreg.io.part import parse_region, part_of
from cloudreg.io.pyramid import build_pyramid
from cloudreg.io.resample import read_resampled
from cloudreg.io.stacked import stacked
from cloudreg.io.volume import Volume
from cloudreg.io.writer import VolumeWriter
from cloudreg.io.writing import write_volume

__all__ = [
    "Kind",
    "Volume",
    "VolumeWriter",
    "build_pyramid",
    "convert",
    "create_volume",
    "describe",
    "describe_cost",
    "downsample",
    "open_volume",
    "parse_region",
    "part_of",
    "pyramid_grids",
    "read_resampled",
    "remove_volume",
    "stacked",
    "to_dtype",
    "write_volume",
]
