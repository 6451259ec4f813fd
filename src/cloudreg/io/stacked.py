"""Volumes of one grid as the channels of one volume; nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.volume import Source, Volume
from cloudreg.space import Box


def stacked(volumes: Sequence[Volume]) -> Volume:
    """Return the first channel of each volume as the channels of one, under the name of the first.

    Raises
    ------
    InputError
        If they do not have the same levels and type.
    """
    first = volumes[0]
    for other in volumes[1:]:
        if other.levels != first.levels or other.dtype != first.dtype:
            raise InputError(
                f"expected volumes of one grid and type, got {first.grid.shape} {first.dtype} at {first.path} and "
                f"{other.grid.shape} {other.dtype} at {other.path}"
            )
    source = _Stacked(tuple(volume.source for volume in volumes))
    return replace(first, source=source, channels=len(volumes), channel_names=None)


@dataclass(frozen=True)
class _Stacked:
    sources: tuple[Source, ...]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box of a level, shape (c, z, y, x)."""
        return np.concatenate([source.read(level, slice(0, 1), box) for source in self.sources[channels]])
