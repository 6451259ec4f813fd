"""Raw acquisitions: COLM folders, and TeraStitcher projects that say where their tiles lie."""

from cloudreg.tiles.acquisition import Acquisition, Intervals, Tile
from cloudreg.tiles.colm import ColmAcquisition, open_acquisition
from cloudreg.tiles.colm_writer import write_colm
from cloudreg.tiles.project import AxisDisplacement, Displacement, Project, ProjectTile, to_project
from cloudreg.tiles.terastitcher_write import write_project
from cloudreg.tiles.terastitcher_xml import read_project

__all__ = [
    "Acquisition",
    "AxisDisplacement",
    "ColmAcquisition",
    "Displacement",
    "Intervals",
    "Project",
    "ProjectTile",
    "Tile",
    "open_acquisition",
    "read_project",
    "to_project",
    "write_colm",
    "write_project",
]
