"""Precomputed chunks on this machine that CloudVolume has compressed: files named ``*.gz``.

On an object store the same chunks say so in a header, and tensorstore undoes it. Files have no headers: here they are
unzipped into memory, where tensorstore decodes them as it would have on the disk.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

from cloudreg.errors import InputError
from cloudreg.io.chunked import StoredArray
from cloudreg.io.objects import Json
from cloudreg.space import Box


def has_gzipped_chunks(folder: Path) -> bool:
    """Whether the chunks of a level are compressed files."""
    return folder.is_dir() and any(file.name.endswith(".gz") for file in itertools.islice(folder.iterdir(), 100))


class GzippedArray(StoredArray):
    """One level of such a volume.

    Parameters
    ----------
    path
        Folder of the volume.
    info
        Its metadata.
    level
        Which of its scales.
    """

    def __init__(self, path: str, info: Json, level: int) -> None:
        super().__init__(path, {"driver": "neuroglancer_precomputed", "scale_index": level}, "xyzc")
        self.info = info
        self.scale = info["scales"][level]

    def __getstate__(self) -> Json:
        return {**super().__getstate__(), "info": self.info, "scale": self.scale}

    def read(self, channels: slice, box: Box) -> Any:
        """Return a box, shape (c, z, y, x)."""
        import tensorstore as ts

        context = ts.Context()
        memory = ts.KvStore.open("memory://unzipped/", context=context).result()
        memory["info"] = json.dumps(self.info).encode()
        for key in self._keys(box):
            content = _content(Path(self.path) / key)
            if content is not None:
                memory[key] = content
        unzipped = StoredArray("memory://unzipped", self.spec, self.axes, context=context)
        return unzipped.read(channels, box)

    def _keys(self, box: Box) -> list[str]:
        along = []
        where = (self.scale.get("voxel_offset", [0, 0, 0]), self.scale["size"], self.scale["chunk_sizes"][0])
        for offset, size, chunk, start, stop in zip(*where, box.start[::-1], box.stop[::-1], strict=True):
            starts = range(start // chunk * chunk, stop, chunk)
            along.append([f"{offset + a}-{offset + min(a + chunk, size)}" for a in starts])
        return [f"{self.scale['key']}/{'_'.join(names)}" for names in itertools.product(*along)]


def _content(file: Path) -> bytes | None:
    zipped = file.with_name(f"{file.name}.gz")
    if not zipped.exists():
        return file.read_bytes() if file.exists() else None
    try:
        return gzip.decompress(zipped.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"expected a whole gzip file, got {zipped}, damaged ({error}): copy it again") from error
