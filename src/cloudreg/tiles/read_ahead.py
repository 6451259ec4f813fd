"""Planes asked for one by one, and read as they are stored: many together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.tiles.acquisition import Acquisition, Tile


class ReadAhead:
    """Reads the same part of a tile's planes, one after another, without decoding a chunk once for each of them.

    Parameters
    ----------
    acquisition, channel
        What to read. For each tile, `Acquisition.planes_together` planes are kept.
    """

    def __init__(self, acquisition: Acquisition, channel: int) -> None:
        self._acquisition = acquisition
        self._channel = channel
        self._held: dict[str, tuple[int, tuple[slice, slice], NDArray[Any]]] = {}

    def plane(self, tile: Tile, plane: int, rows: slice, columns: slice) -> NDArray[Any]:
        """Return a part of a plane, see `Acquisition.read`."""
        together = self._acquisition.planes_together
        if together == 1:
            (only,) = self._acquisition.read(tile, self._channel, plane, plane + 1, rows, columns)
            return np.asarray(only)
        held = self._held.get(tile.name)
        if held is None or held[1] != (rows, columns) or not held[0] <= plane < held[0] + len(held[2]):
            # Up to where the stored planes end, so that the next ones begin with them.
            stop = min((plane // together + 1) * together, self._acquisition.tile_shape[0])
            found = self._acquisition.read(tile, self._channel, plane, stop, rows, columns)
            held = self._held[tile.name] = plane, (rows, columns), found
        return np.asarray(held[2][plane - held[0]])
