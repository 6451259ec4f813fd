"""How well each tile's place is known, and by what: the images or the stage.

With M the information that links have on all positions together and P that of the stage, the covariance of the
positions is the inverse of M + P. The place of a tile relative to a group of others is a sum w of rows of it; its
variance, w^T (M + P) w, has a part w^T M w from the errors of the links and a part w^T P w from those of the stage. A
tile whose overlaps show one straight edge is known across it and not along it: there the stage's part is all. Errors
that the stage has in common for all tiles come on top, w^T P times each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from cloudreg.tiles import Certainty, Project, ProjectTile

# A tile that may be off by more than a pixel is named; "may" stands for this many standard deviations.
_NAMED_PX = 1.0
_MAY = 2.0
_MOSTLY = 0.5
_TOGETHER = 64
_AXES = ("z", "y", "x")


def find_certainties(
    links: Any, stage: Any, common: NDArray[np.float64], group: NDArray[np.intp]
) -> tuple[Certainty, ...]:
    """Return how well the place of each tile is known.

    Parameters
    ----------
    links, stage
        (3n, 3n) sparse, 1/px^2: what each knows of the positions, z y x of the first tile, of the second, ….
    common
        (3n, k), px: errors of the stage that all tiles share, by one standard deviation each.
    group
        Indices of the tiles relative to whose mean places are known.
    """
    size = links.shape[0]
    factors = splu((links + stage).tocsc())
    reference = np.zeros((size, 3))
    for axis in range(3):
        reference[3 * group + axis, axis] = 1 / len(group)
    certainties = []
    # A few tiles at a time: the whole covariance of thousands is too large.
    for first in range(0, size // 3, _TOGETHER):
        tiles = range(first, min(first + _TOGETHER, size // 3))
        wanted = np.zeros((size, len(tiles), 3))
        for k, tile in enumerate(tiles):
            wanted[3 * tile : 3 * tile + 3, k] = np.eye(3)
        weights = factors.solve((wanted - reference[:, None]).reshape(size, -1))
        seen, moved = (
            np.einsum("ski,skj->kij", weights.reshape(wanted.shape), (part @ weights).reshape(wanted.shape))
            for part in (links, stage)
        )
        shared = (common.T @ (stage @ weights)).reshape(-1, len(tiles), 3)
        moved += np.einsum("ski,skj->kij", shared, shared)
        certainties += [_certainty(*parts) for parts in zip(seen, moved, strict=True)]
    return tuple(certainties)


def _certainty(of_links: NDArray[np.float64], of_stage: NDArray[np.float64]) -> Certainty:
    values, vectors = np.linalg.eigh(of_links + of_stage)
    worst = vectors[:, -1]
    z, y, x = np.sqrt(np.maximum(np.diag(of_links + of_stage), 0)).tolist()
    share = float(worst @ of_stage @ worst) / max(float(values[-1]), 1e-30)
    return Certainty((z, y, x), float(np.sqrt(max(values[-1], 0))), min(max(share, 0.0), 1.0))


def doubts(project: Project) -> list[tuple[ProjectTile, str]]:
    """Return the tiles that the images don't hold to a pixel in all three directions, and what is known of each."""
    return [(tile, what) for tile in project.tiles if tile.name and (what := _doubt(tile))]


def doubt_lines(project: Project) -> list[str]:
    """Return a line for each doubt, with all tiles that have it."""
    together: dict[str, list[str]] = {}
    for tile, what in doubts(project):
        together.setdefault(what, []).append(f"{tile.name} (row {tile.row}, column {tile.column})")
    return [f"{', '.join(names)}: {what}" for what, names in together.items()]


def _doubt(tile: ProjectTile) -> str:
    certainty = tile.certainty
    if certainty is None or (tile.stitchable and _MAY * certainty.worst_px <= _NAMED_PX):
        return ""
    may = [_MAY * sigma for sigma in certainty.sigma_px]
    axes = [i for i in range(3) if may[i] > _NAMED_PX] or [int(np.argmax(may))]
    where, far = _listed([_AXES[i] for i in axes]), _listed([f"{max(1, round(may[i]))}" for i in axes])
    off = f"may be off by up to ~{far} px"
    if not tile.stitchable:
        return f"no usable overlap: placed by the stage, {off} along {where}"
    if certainty.stage_share < _MOSTLY:
        return f"held only roughly by the images along {where}: {off}"
    return f"not held by the images along {where}: placed by the stage there, {off}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
