"""Find out what a raw acquisition is, and open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.io.lengths import checked_voxel_size
from cloudreg.io.remote import RemotePath, place_of
from cloudreg.tiles.acquisition import Acquisition, Place
from cloudreg.tiles.colm import INI, VIEW, open_colm
from cloudreg.tiles.project import Project
from cloudreg.tiles.projected import open_project
from cloudreg.tiles.table import TABLES, open_placed_tiles, open_table, tiles_in


def open_acquisition(
    path: str | Place, *, voxel_size_um: Sequence[float] | None = None, strict: bool = False
) -> Acquisition:
    """Open a raw acquisition, and check all that can be checked without reading its pixels.

    Parameters
    ----------
    path
        A COLM folder (with ``Experiment.ini``); a TeraStitcher project (``.xml``); a table of tiles (``.csv``,
        ``.yaml``) or the folder of one named ``tiles`` or ``positions``; a folder of OME-TIFFs or OME-Zarrs that say
        where they are. All but the project may be ``s3://``, ``gs://`` or ``https://`` addresses, and so may be the
        folder that a project or a table names.
    voxel_size_um
        z, y, x, instead of what the files say.
    strict
        Whether a plane that can't be read is an error; else it is taken for lost and named, see
        `cloudreg.tiles.damage`.

    Raises
    ------
    InputError
        If there is none of these, or it is not whole; see `open_colm`, `open_project`, `open_table`.
    """
    size = None if voxel_size_um is None else checked_voxel_size(voxel_size_um, str(path))
    place: Place = (place_of(path) or Path(path)) if isinstance(path, str) else path
    name = place.name.lower()
    if isinstance(place, Path) and name.endswith(".xml"):
        return open_project(place, voxel_size_um=size, strict=strict)
    if name.endswith((".csv", ".yaml", ".yml")):
        return open_table(place, voxel_size_um=size, strict=strict)
    if isinstance(place, Path) and not place.is_dir():
        found = "a file" if place.exists() else "nothing"
        raise InputError(
            f"expected the folder of a raw acquisition at {place}, found {found}: a table (.csv, .yaml) or a project "
            "(.xml) would do too"
        )
    if _is_colm(place):
        return open_colm(place, voxel_size_um=size, strict=strict)
    table = next((place / t for t in TABLES if (place / t).exists()), None)
    if table is not None:
        return open_table(table, voxel_size_um=size, strict=strict)
    tiles = tiles_in(place)
    if tiles:
        return open_placed_tiles(place, tiles, voxel_size_um=size, strict=strict)
    # The reader of COLM says what it misses.
    return open_colm(place, voxel_size_um=size, strict=strict)


_ENDS = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".zarr", ".ome.zarr")


def _is_colm(place: Place) -> bool:
    if (place / INI).exists():
        return True
    folder = place / VIEW
    return place.name == VIEW or (isinstance(folder, Path) and folder.is_dir())


def acquisition_of(path: Path, project: Project) -> str:
    """Return the path of the acquisition of a project: the folder that it names, or else the project itself.

    Parameters
    ----------
    path
        Of the project.
    project
        What is in it.
    """
    folder: Place = place_of(_address(str(project.stacks_dir))) or project.stacks_dir
    if (folder.parent / INI).exists():
        return str(folder.parent)
    if any((folder / t).exists() for t in TABLES):
        return str(folder)
    exists = isinstance(folder, RemotePath) or folder.is_dir()
    names = {f"{tile.name}{end}" for tile in project.tiles if tile.name for end in _ENDS}
    return str(folder) if exists and names & set(tiles_in(folder)) else str(path)


def _address(text: str) -> str:
    """Return an address with the two slashes of which a path keeps one."""
    head, colon, rest = text.partition(":/")
    return f"{head}://{rest.lstrip('/')}" if colon and head in ("s3", "gs", "http", "https") else text
