"""Boxes of voxels: how a volume is cut for reading, computing and writing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of voxels, z y x.

    Parameters
    ----------
    start, stop
        First voxel and one past the last, per axis (z, y, x).
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels per axis; 0 where the box is empty."""
        return _triple([max(0, b - a) for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in a z, y, x array."""
        (z0, y0, x0), (z1, y1, x1) = self.start, self.stop
        return slice(z0, z1), slice(y0, y1), slice(x0, x1)

    def __str__(self) -> str:
        """Return a name that is stable between runs, for ledgers and messages."""
        return "_".join(f"{a}-{b}" for a, b in zip(self.start, self.stop, strict=True))

    def intersection(self, other: Box) -> Box:
        """Return the common part; empty (size 0) where there is none."""
        start = _triple([max(a, b) for a, b in zip(self.start, other.start, strict=True)])
        stop = _triple([min(a, b) for a, b in zip(self.stop, other.stop, strict=True)])
        return Box(start, _triple([max(a, b) for a, b in zip(start, stop, strict=True)]))

    def shifted(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset`` voxels (z, y, x)."""
        return Box(
            _triple([a + int(o) for a, o in zip(self.start, offset, strict=True)]),
            _triple([b + int(o) for b, o in zip(self.stop, offset, strict=True)]),
        )

    def grown(self, margin: Sequence[int], within: Sequence[int]) -> Box:
        """Return the box with ``margin`` voxels more on each side, cut to an array of shape ``within``."""
        return Box(
            _triple([max(0, a - int(m)) for a, m in zip(self.start, margin, strict=True)]),
            _triple([min(int(n), b + int(m)) for b, m, n in zip(self.stop, margin, within, strict=True)]),
        )

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        """Return the box that covers an array of this shape."""
        return Box((0, 0, 0), _triple(shape))


def split(shape: Sequence[int], block: Sequence[int]) -> list[Box]:
    """Cut an array into boxes of at most ``block`` voxels, in z, y, x order.

    Parameters
    ----------
    shape, block
        Array shape and largest box, z y x. Boxes start at multiples of ``block``.

    Returns
    -------
    list of Box
        They tile the array exactly, without overlap.
    """
    starts = [range(0, int(n), int(b)) for n, b in zip(shape, block, strict=True)]
    return [
        Box(_triple(start), _triple([min(a + int(b), int(n)) for a, b, n in zip(start, block, shape, strict=True)]))
        for start in itertools.product(*starts)
    ]


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(v) for v in values)
    return z, y, x
