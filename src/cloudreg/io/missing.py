"""Half a volume: precomputed chunks that should be there and are not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io.chunked import ChunkedSource
from cloudreg.io.layout import KEY
from cloudreg.io.objects import Json, is_remote, list_files, read_json
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.volume import Volume
from cloudreg.space import Box


def requiring_chunks(volume: Volume, level: int, region: Box | None = None) -> Volume:
    """Return a volume that is not taken for a whole one where a copy of it was stopped half way.

    Only precomputed volumes of other programs are looked at: elsewhere a chunk that isn't there holds zeros by the
    format's own rule, and those that CloudReg wrote say whether they are complete. Where a whole level is to be read
    and its chunks can be listed, that is done now; else a missing chunk is an error when it is read.

    Parameters
    ----------
    level, region
        What is to be read; the whole level without a region.

    Raises
    ------
    InputError
        If chunks are missing; names the first.
    """
    if volume.format != "precomputed" or not isinstance(volume.source, ChunkedSource):
        return volume
    path = volume.path.removeprefix(PREFIX)
    info = read_json(path, "info") or {}
    if KEY in info:
        return volume
    scale = info["scales"][level]
    if region is None and "sharding" not in scale and not path.startswith(("http://", "https://")):
        _require_listed(volume, level, scale)
    arrays = tuple(array.requiring_chunks() for array in volume.source.arrays)
    return dataclasses.replace(volume, source=ChunkedSource(arrays))


def _require_listed(volume: Volume, level: int, scale: Json) -> None:
    offset, size, chunk = scale.get("voxel_offset", [0, 0, 0]), scale["size"], scale["chunk_sizes"][0]
    along = [
        [f"{o + a}-{o + min(a + c, n)}" for a in range(0, n, c)] for o, n, c in zip(offset, size, chunk, strict=True)
    ]
    number = [{name: i for i, name in enumerate(names)} for names in along]
    # A bit a chunk: the names of the millions that a terabyte has would not fit in memory.
    there = np.zeros([len(names) for names in along], dtype=bool)
    key = os.path.normpath(scale["key"])
    for name in _chunk_names(volume.path.removeprefix(PREFIX), key, along[0]):
        parts = name.removesuffix(".gz").split("_")
        if len(parts) == 3 and all(part in numbers for part, numbers in zip(parts, number, strict=True)):
            there[tuple(numbers[part] for part, numbers in zip(parts, number, strict=True))] = True
    missing = there.size - int(np.count_nonzero(there))
    if missing:
        first = np.unravel_index(np.flatnonzero(~there)[:3], there.shape)
        names = (f"{key}/" + "_".join(a[i] for a, i in zip(along, at, strict=True)) for at in zip(*first, strict=True))
        raise InputError(
            f"expected {there.size} chunks in level {level} of {volume.path}, {missing} are missing "
            f"({', '.join(names)}{', …' if missing > 3 else ''}): finish the copy, or give --fill-missing to take them "
            "for zeros"
        )


def _chunk_names(path: str, key: str, columns: Sequence[str]) -> Iterator[str]:
    """Yield the names of the files of a level, never many at once."""
    if is_remote(path):
        for column in columns:
            yield from (name.removeprefix(f"{key}/") for name in list_files(path, f"{key}/{column}_"))
    elif (folder := Path(path) / key).is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
