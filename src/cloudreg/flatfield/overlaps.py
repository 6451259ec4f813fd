"""What the overlaps of the tiles say about the flat field.

Where two tiles overlap, one piece of tissue is seen twice, at opposite borders of the camera. The ratio of the two
pictures is the ratio of the flat field at two places, whatever the tissue: it measures how the light falls off, where
a mean over few tiles also measures the brain. Flat fields from displaced pictures of the same scene are due to Kuhn,
Lin and Loranz 1991 (doi:10.1086/132932).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudreg.tiles import Acquisition

Scalar = TypeVar("Scalar", bound=np.generic)

# A block must be seen in this part of the depths, so that its median is not one vessel.
_LEAST_PLANES = 0.2


@dataclass(frozen=True)
class Overlaps:
    """Equations ``design @ coefficients = ratio``, one for each block of each overlap.

    Parameters
    ----------
    design
        (equations, functions): differences of the basis functions between the two places.
    ratio
        (equations,): logarithm of the ratio of the two pictures, the median over the depths.
    pair
        (equations,): which pair of tiles; equations of one pair err together.
    """

    design: NDArray[np.float64]
    ratio: NDArray[np.float64]
    pair: NDArray[np.intp]


def compare_overlaps(
    acquisition: Acquisition,
    light: NDArray[np.float32],
    basis: NDArray[np.float64],
    block_px: int,
    threshold: float,
) -> Overlaps:
    """Compare each tile with its right and its lower neighbour, where they overlap by the stage's positions.

    Parameters
    ----------
    acquisition
        Says which tiles are neighbours.
    light
        (tiles, depths, rows, columns), brightness above the background, of blocks of ``block_px`` pixels.
    basis
        (functions, rows, columns).
    block_px
        Side of a block.
    threshold
        Blocks count where the geometric mean of both pictures is brighter. It favours neither picture, so that the
        choice does not shift their ratio.
    """
    designs, ratios, pairs = [np.empty((0, len(basis)))], [np.empty(0)], [np.empty(0, np.intp)]
    for number, (first, second, axis) in enumerate(_neighbours(acquisition)):
        view = _Overlap.between(
            acquisition.pitch_px[axis] / block_px, acquisition.tile_shape[1 + axis] // block_px, axis
        )
        here, there = view.of_first(light[first]), view.of_second(light[second])
        seen = (here > 0) & (there > 0) & (here * there > threshold**2)
        usable = seen.sum(axis=0) >= max(1, _LEAST_PLANES * len(seen))
        if not usable.any():
            continue
        ratio = np.log(np.divide(here, there, where=seen, out=np.full(seen.shape, np.nan)))
        design = view.of_first(basis) - view.of_second(basis)
        ratios.append(np.nanmedian(ratio[:, usable], axis=0))
        designs.append(design[:, usable].T)
        pairs.append(np.full(int(usable.sum()), number))
    return Overlaps(np.concatenate(designs), np.concatenate(ratios), np.concatenate(pairs))


@dataclass(frozen=True)
class _Overlap:
    """Where the overlap of two neighbours lies in the stacks of blocks (n, rows, columns) of each.

    The second's blocks are interpolated linearly between two of them, onto those of the first.
    """

    axis: int
    here: NDArray[np.intp]
    there: NDArray[np.intp]
    part: NDArray[np.float32]

    @staticmethod
    def between(pitch: float, length: int, axis: int) -> _Overlap:
        """Describe it by the tiles' distance along an axis and the number of whole blocks, those cut being left out."""
        here = np.arange(math.ceil(pitch), length)
        there = np.floor(here - pitch).astype(np.intp)
        here, there = here[there + 1 < length], there[there + 1 < length]
        part = (here - pitch - there).astype(np.float32)
        return _Overlap(1 + axis, here, there, part[:, None] if axis == 0 else part[None, :])

    def of_first(self, blocks: NDArray[Scalar]) -> NDArray[Scalar]:
        return blocks.take(self.here, self.axis)

    def of_second(self, blocks: NDArray[Any]) -> NDArray[Any]:
        before, after = blocks.take(self.there, self.axis), blocks.take(self.there + 1, self.axis)
        return np.asarray((1 - self.part) * before + self.part * after)


def _neighbours(acquisition: Acquisition) -> Iterator[tuple[int, int, int]]:
    """Yield indices of tile and neighbour, and the axis between them: 0 = vertical, 1 = horizontal."""
    index = {(tile.row, tile.column): i for i, tile in enumerate(acquisition.tiles)}
    for (row, column), i in index.items():
        for axis, place in enumerate(((row + 1, column), (row, column + 1))):
            if place in index:
                yield i, index[place], axis
