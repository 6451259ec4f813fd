"""Placement as TeraStitcher's step 5 does it: along the most reliable chain of displacements from one tile.

Each axis is placed by itself. A displacement costs one over its reliability, an unreliable one very much; a tile lies
where the cheapest chain from the source leads. What other chains say does not count, so that errors around a loop stay
in one of its links; `cloudreg.stitching.placement` spreads them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from cloudreg.tiles import Displacement, Project

_UNRELIABLE_COST = 1000.0


def place_by_tree(project: Project) -> Project:
    """Return a project with TeraStitcher's positions: its step 5.

    Parameters
    ----------
    project
        Its displacements are projected first, see `Project.projected`; what is unreliable should be nominal, see
        `Project.thresholded`.

    Returns
    -------
    Project
        Tile (0, 0) lies at (0, 0, 0), even where there is none. Cells without a tile are placed as well.
    """
    project = project.projected()
    edges = list(_edges(project))
    source = _source(project)
    positions = np.stack([_along(edges, axis, source, len(project.tiles)) for axis in range(3)], axis=1)
    positions -= positions[0]
    return project.moved(
        {
            (tile.row, tile.column): (float(z), float(y), float(x))
            for tile, (z, y, x) in zip(project.tiles, positions.tolist(), strict=True)
        }
    )


def _edges(project: Project) -> Iterator[tuple[int, int, Displacement]]:
    for index, tile in enumerate(project.tiles):
        for displacement in tile.east:
            yield index, index + 1, displacement
        for displacement in tile.south:
            yield index, index + project.columns, displacement


def _source(project: Project) -> int:
    """Index of the stitchable tile that is nearest to the first cell."""
    stitchable = [i for i, tile in enumerate(project.tiles) if tile.stitchable]
    return min(stitchable, key=lambda i: project.tiles[i].row + project.tiles[i].column, default=0)


def _along(edges: list[tuple[int, int, Displacement]], axis: int, source: int, count: int) -> NDArray[np.float64]:
    """Positions along one axis, from the source."""
    position = np.zeros(count)
    if not edges:
        return position
    rows, columns, cost, step = [], [], [], {}
    for first, second, displacement in edges:
        along = displacement.axes[axis]
        price = 1 / along.reliability if along.reliability > 0 else _UNRELIABLE_COST
        for start, stop, px in ((first, second, along.px), (second, first, -along.px)):
            rows.append(start)
            columns.append(stop)
            cost.append(price)
            step[start, stop] = px
    # The indices that older versions of SciPy's graphs ask for.
    places = np.array([rows, columns], dtype=np.int32)
    graph = sparse.csr_array((cost, (places[0], places[1])), shape=(count, count))
    distance, before = dijkstra(graph, indices=source, return_predecessors=True)
    # Nearer tiles first: those that a chain leads over are placed before the tile at its end.
    for tile in np.argsort(distance, kind="stable"):
        if tile != source:
            position[tile] = position[before[tile]] + step[int(before[tile]), int(tile)]
    return position
