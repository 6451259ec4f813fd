"""One gain and one offset for each tile, so that overlapping tiles show the same tissue equally bright.

Lasers drift and dyes bleach while a brain is scanned. Where tiles i and j overlap, block means a and b of the same
place should agree after correction:

    sum over blocks  w |g_i a + o_i - g_j b - o_j|^2  +  sum over tiles  |g - 1|^2 / 0.2^2 + |o|^2 / (0.1 level)^2

is least, with lengths in units of the blocks' scatter. Blocks that disagree with the rest lose their weight. The mean
gain is 1, so that grey values keep their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.execution import Engine
from cloudreg.execution.progress import say
from cloudreg.space import Box
from cloudreg.stitching.links import neighbours
from cloudreg.stitching.places import TilePlace, shared
from cloudreg.tiles import Acquisition, Tile

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Array = NDArray[Any]

_DEPTHS = 12
_BLOCK = 16
_GAIN_SCATTER, _OFFSET_SCATTER = 0.2, 0.1
# Blocks of one overlap err together: they count as so many.
_INDEPENDENT = 50
_OUTLIER = 2.0
_PASSES = 10


@dataclass(frozen=True)
class Exposure:
    """What a tile's brightness is multiplied with, and what is added then."""

    gain: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class _Pair:
    first: int
    second: int


def balance_exposure(
    acquisition: Acquisition, channel: int, shading: Shading | None, places: Sequence[TilePlace], engine: Engine
) -> tuple[Exposure, ...]:
    """Find the exposure of each tile.

    Parameters
    ----------
    acquisition, channel
        What to read: a few planes of each overlap.
    shading
        Applied first, or None.
    places
        Where the tiles lie.
    engine
        Runs the pairs; each holds two strips of one plane.

    Returns
    -------
    tuple of Exposure
        In the order of the acquisition's tiles; the same for any number of workers. A tile without an overlap that
        shows something is left as it is, but for the common scale.
    """
    pairs = [_Pair(*pair) for pair in neighbours(acquisition.tiles)]
    task = _Compare(acquisition, channel, shading, tuple(places))
    found = engine.run(task, pairs, label="balance exposures", unit="pairs")
    exposures = solve_exposures(
        len(acquisition.tiles), [(p.first, p.second, ab) for p, ab in zip(pairs, found, strict=True) if ab is not None]
    )
    gains = [e.gain for e in exposures]
    say(f"channel {channel}: gains of the tiles {min(gains):.2f} to {max(gains):.2f}")
    return exposures


def solve_exposures(tiles: int, overlaps: Sequence[tuple[int, int, Array]]) -> tuple[Exposure, ...]:
    """Solve for the exposures of tiles.

    Parameters
    ----------
    tiles
        How many.
    overlaps
        First tile, second tile, and (n, 2) brightnesses of the same places in both.
    """
    overlaps = [(i, j, np.asarray(ab, dtype=np.float64)) for i, j, ab in overlaps if len(ab)]
    if not overlaps:
        return (Exposure(),) * tiles
    level = float(np.median(np.concatenate([ab.ravel() for _, _, ab in overlaps])))
    level = level if level > 0 else 1.0
    gain, offset = np.ones(tiles), np.zeros(tiles)
    prior = np.concatenate([np.full(tiles, _GAIN_SCATTER**-2), np.full(tiles, _OFFSET_SCATTER**-2)])
    wanted = np.concatenate([np.ones(tiles), np.zeros(tiles)])
    for _ in range(_PASSES):
        # Brightness in units of the level; noise grows with it.
        rests = [
            (gain[i] * ab[:, 0] / level + offset[i] - gain[j] * ab[:, 1] / level - offset[j])
            / (1 + ab.mean(axis=1) / level)
            for i, j, ab in overlaps
        ]
        scale = 1.4826 * float(np.median(np.abs(np.concatenate(rests)))) + 1e-3
        normal, right = np.diag(prior), prior * wanted
        for (i, j, ab), rest in zip(overlaps, rests, strict=True):
            weight = 1 / (1 + (rest / (_OUTLIER * scale)) ** 2) / (scale * (1 + ab.mean(axis=1) / level)) ** 2
            weight *= min(1.0, _INDEPENDENT / len(ab))
            a, b, one = ab[:, 0] / level, -ab[:, 1] / level, np.ones(len(ab))
            columns = np.stack([a, b, one, -one])
            index = np.array([i, j, tiles + i, tiles + j])
            normal[np.ix_(index, index)] += (columns * weight) @ columns.T
        solution = np.linalg.solve(normal, right)
        gain, offset = solution[:tiles], solution[tiles:]
        # Small gains would make all differences small.
        scaled = float(gain.mean())
        gain, offset = gain / scaled, offset / scaled
    return tuple(Exposure(float(g), float(o) * level) for g, o in zip(gain, offset, strict=True))


@dataclass(frozen=True)
class _Compare:
    acquisition: Acquisition
    channel: int
    shading: Shading | None
    places: tuple[TilePlace, ...]

    def __call__(self, pair: _Pair) -> Array:
        """Return block means (n, 2) of what both tiles saw."""
        first, second = (self.acquisition.tiles[i] for i in (pair.first, pair.second))
        here, there = self.places[pair.first], self.places[pair.second]
        common = here.box.intersection(there.box)
        depths = range(common.start[0], common.stop[0])
        planes = [z for z in depths if shared(here, there, z).size and self._both(first, second, here, there, z)]
        chosen = [planes[len(planes) * (2 * k + 1) // (2 * _DEPTHS)] for k in range(_DEPTHS)] if planes else []
        found = []
        for z in sorted(set(chosen)):
            part = shared(here, there, z)
            a, b = (self._blocks(tile, place, part) for tile, place in ((first, here), (second, there)))
            seen = (a > 0) & (b > 0)
            found.append(np.stack([a[seen], b[seen]], axis=1))
        return np.concatenate(found) if found else np.empty((0, 2))

    def _both(self, first: Tile, second: Tile, here: TilePlace, there: TilePlace, z: int) -> bool:
        return all(
            any(a <= z - place.first_plane < b for a, b in self.acquisition.planes(tile, self.channel))
            for tile, place in ((first, here), (second, there))
        )

    def _blocks(self, tile: Tile, place: TilePlace, part: Box) -> Array:
        """Means over blocks of a part of a plane; 0 where a pixel of the block was not observed."""
        whole = place.at(part.start[0])
        _, rows, columns = part.shifted([-v for v in whole.start]).slices
        plane = whole.start[0] - place.first_plane
        raw: Array = self.acquisition.read(tile, self.channel, plane, plane + 1, rows, columns)
        values = raw.astype(np.float32) if self.shading is None else self.shading.apply(raw, rows, columns)
        # Blocks are smaller where the overlap is.
        sides = [min(_BLOCK, n) for n in values.shape[1:]]
        height, width = (n // s * s for n, s in zip(values.shape[1:], sides, strict=True))
        shape = height // sides[0], sides[0], width // sides[1], sides[1]
        means = values[0, :height, :width].reshape(shape).mean(axis=(1, 3), dtype=np.float64)
        return np.asarray(means * (raw[0, :height, :width] > 0).reshape(shape).all(axis=(1, 3)))
