"""Half a volume: precomputed chunks that should be there and are not."""

from __future__ import annotations

import itertools
import os

from cloudreg.errors import InputError
from cloudreg.io.layout import KEY
from cloudreg.io.objects import list_files, read_json
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.volume import Volume


def require_all_chunks(volume: Volume, level: int) -> None:
    """Make sure that a copy, which was stopped half way, is not taken for a whole volume.

    Only precomputed volumes of other programs, without shards, are looked at: elsewhere a chunk that isn't there holds
    zeros by the format's own rule, and those that CloudReg wrote say whether they are complete.

    Raises
    ------
    InputError
        If chunks are missing; names the first.
    """
    if volume.format != "precomputed" or volume.path.startswith((f"{PREFIX}http://", f"{PREFIX}https://")):
        return
    path = volume.path.removeprefix(PREFIX)
    info = read_json(path, "info") or {}
    if KEY in info or "sharding" in info["scales"][level]:
        return
    scale = info["scales"][level]
    offset, size, chunk = scale.get("voxel_offset", [0, 0, 0]), scale["size"], scale["chunk_sizes"][0]
    along = [
        [f"{o + a}-{o + min(a + c, n)}" for a in range(0, n, c)] for o, n, c in zip(offset, size, chunk, strict=True)
    ]
    key = os.path.normpath(scale["key"])
    there = {name.removesuffix(".gz") for name in list_files(path, f"{key}/")}
    names = (f"{key}/" + "_".join(parts) for parts in itertools.product(*along))
    missing = [name for name in names if name not in there]
    if missing:
        total = len(along[0]) * len(along[1]) * len(along[2])
        some = ", ".join(missing[:3])
        raise InputError(
            f"expected {total} chunks in level {level} of {volume.path}, {len(missing)} are missing ({some}"
            f"{', …' if len(missing) > 3 else ''}): finish the copy, or give --fill-missing to take them for zeros"
        )
