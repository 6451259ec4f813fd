"""A level, or a box of one, as a volume of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.volume import Source, Volume
from cloudreg.space import Box


@dataclass(frozen=True)
class _Part:
    """Voxels of a box of one level of another source."""

    source: Source
    level: int
    start: tuple[int, int, int]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box of the part, shape (c, z, y, x); it has one level."""
        return self.source.read(self.level, channels, box.shifted(self.start))


def part_of(volume: Volume, *, level: int = 0, region: Box | None = None) -> Volume:
    """Return one level of a volume, or a box of it, where it lies.

    Parameters
    ----------
    level
        0 is the finest.
    region
        In voxels of that level; all of it by default.

    Raises
    ------
    InputError
        If there is no such level, or the region is empty or reaches outside.
    """
    if not 0 <= level < len(volume.levels):
        raise InputError(f"expected a level from 0 to {len(volume.levels) - 1} of {volume.path}, got {level}")
    whole = Box.whole(volume.levels[level].shape)
    region = whole if region is None else region
    if region.size == 0 or region.intersection(whole) != region:
        raise InputError(
            f"expected a region within {whole} (z, y, x voxels of level {level}) of {volume.path}, got {region}"
        )
    return replace(
        volume,
        levels=(volume.levels[level].cropped(region),),
        source=_Part(volume.source, level, region.start),
    )


def parse_region(text: str) -> Box:
    """Return the box that ``Z0:Z1,Y0:Y1,X0:X1`` names, in voxels; the ends don't belong to it.

    Raises
    ------
    InputError
        If the text is none.
    """
    try:
        (z0, z1), (y0, y1), (x0, x1) = ([int(n) for n in part.split(":")] for part in text.split(","))
    except ValueError as error:
        raise InputError(f"a region is Z0:Z1,Y0:Y1,X0:X1 in voxels, such as 0:64,100:300,0:200, not {text}") from error
    return Box((z0, y0, x0), (z1, y1, x1))
