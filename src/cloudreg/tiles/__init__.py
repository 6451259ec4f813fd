"""Raw acquisitions: COLM folders, TeraStitcher projects, tables of volumes; and projects of where their tiles lie."""

from cloudreg.tiles.acquisition import Acquisition, Intervals, Tile
from cloudreg.tiles.colm import ColmAcquisition, open_colm
from cloudreg.tiles.colm_writer import write_colm
from cloudreg.tiles.damage import damaged_planes, say_damage
from cloudreg.tiles.opening import acquisition_of, open_acquisition
from cloudreg.tiles.project import AxisDisplacement, Certainty, Displacement, Drift, Project, ProjectTile, to_project
from cloudreg.tiles.terastitcher_write import write_project
from cloudreg.tiles.terastitcher_xml import read_project

__all__ = [
    "Acquisition",
    "AxisDisplacement",
    "Certainty",
    "ColmAcquisition",
    "Displacement",
    "Drift",
    "Intervals",
    "Project",
    "ProjectTile",
    "Tile",
    "acquisition_of",
    "damaged_planes",
    "open_acquisition",
    "open_colm",
    "read_project",
    "say_damage",
    "to_project",
    "write_colm",
    "write_project",
]
