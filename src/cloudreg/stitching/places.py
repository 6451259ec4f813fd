"""Where each plane of each tile lies, in whole pixels of a project's frame.

Tiles are moved by whole pixels. One that drifts sideways over its depth is moved plane by plane: each plane lies within
half a pixel of its measured position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Box
from cloudreg.tiles import Acquisition, Project
from cloudreg.tiles.project import require_same_grid

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class TilePlace:
    """Where a tile lies.

    Parameters
    ----------
    first_plane
        Depth of its first plane.
    corners
        (planes, 2), whole numbers: row and column of each plane's first pixel.
    size
        Rows and columns of a plane.
    """

    first_plane: int
    corners: NDArray[np.int64]
    size: tuple[int, int]

    @property
    def box(self) -> Box:
        """The smallest box that holds all planes."""
        return self._spanned(0, len(self.corners))

    def at(self, depth: int) -> Box:
        """Return the box of the plane that lies at a depth, one plane deep; empty where there is none."""
        plane = depth - self.first_plane
        return self._spanned(plane, plane + 1) if 0 <= plane < len(self.corners) else Box.whole((0, 0, 0))

    def seen_in(self, box: Box) -> tuple[slice, slice]:
        """Return the rows and columns of the tile's own that any of its planes shows in a box."""
        start = max(box.start[0] - self.first_plane, 0)
        spanned = self._spanned(start, max(start + 1, min(box.stop[0] - self.first_plane, len(self.corners))))
        rows, columns = (
            slice(
                max(0, box.start[i] - spanned.stop[i] + self.size[i - 1]),
                min(self.size[i - 1], box.stop[i] - spanned.start[i]),
            )
            for i in (1, 2)
        )
        return rows, columns

    def _spanned(self, start: int, stop: int) -> Box:
        low, high = self.corners[start:stop].min(axis=0), self.corners[start:stop].max(axis=0) + self.size
        (y0, x0), (y1, x1) = low.tolist(), high.tolist()
        return Box((self.first_plane + start, y0, x0), (self.first_plane + stop, y1, x1))


def tile_places(acquisition: Acquisition, project: Project) -> list[TilePlace]:
    """Return where each tile of the acquisition lies, in the project's frame.

    Raises
    ------
    InputError
        If the project has no such tiles.
    """
    require_same_grid(acquisition, project)
    planes, height, width = acquisition.tile_shape
    places = []
    for tile in acquisition.tiles:
        cell = project.tile(tile.row, tile.column)
        z, *corner = cell.position_px
        drift = np.zeros((planes, 2)) if cell.drift is None else cell.drift.at(np.arange(planes))
        whole = np.floor(np.asarray(corner) + drift + 0.5).astype(np.int64)
        places.append(TilePlace(int(np.floor(z + 0.5)), whole, (height, width)))
    return places


def shared(first: TilePlace, second: TilePlace, depth: int) -> Box:
    """Return what two tiles both show at a depth, one plane deep."""
    return first.at(depth).intersection(second.at(depth))
