"""Numbers for every region, and for how far to trust them."""

from cloudreg.regions.evaluate import Evaluation, evaluate
from cloudreg.regions.table import Intensity, RegionRow, RegionTable, count_cells, region_table, write_regions_csv

__all__ = [
    "Evaluation",
    "Intensity",
    "RegionRow",
    "RegionTable",
    "count_cells",
    "evaluate",
    "region_table",
    "write_regions_csv",
]
