"""Chunked arrays on disks, object stores and web servers, by tensorstore."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Box

Json = dict[str, Any]


def is_remote(path: str) -> bool:
    """Whether a path is the address of an object store or a web server."""
    return path.startswith(("s3://", "gs://", "http://", "https://", "memory://"))


def kvstore(path: str) -> Json | str:
    """Return tensorstore's description of the folder at a path or address."""
    if is_remote(path):
        return path.rstrip("/") + "/"
    return {"driver": "file", "path": os.path.join(os.path.abspath(path), "")}  # noqa: PTH100, PTH118 - text, not a Path


def read_json(path: str, key: str) -> Json | None:
    """Return the JSON object in file ``key`` of a folder, or None where there is no such file.

    Raises
    ------
    InputError
        If the folder can't be reached or the file is no JSON object.
    """
    import tensorstore as ts

    try:
        found = ts.KvStore.open(kvstore(path)).result().read(key).result()
    except ValueError as error:
        raise InputError(f"expected a volume that can be read at {path}: {_first_words(error)}") from error
    if found.state != "value":
        return None
    try:
        value = json.loads(found.value)
    except ValueError as error:
        raise InputError(f"expected JSON in {path}/{key}, got text that is none ({error}): restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}/{key}, got a {type(value).__name__}: restore the file")
    return value


def write_json(path: str, key: str, value: Json) -> None:
    """Write a JSON object as file ``key`` of a folder, at once or not at all."""
    import tensorstore as ts

    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    ts.KvStore.open(kvstore(path)).result().write(key, text.encode()).result()


class StoredArray:
    """One array of a chunked format, seen as (c, z, y, x) whatever its stored axes.

    Parameters
    ----------
    spec
        What tensorstore needs to open it.
    axes
        One letter per stored axis out of ``tczyx``; t must have one entry.
    """

    def __init__(self, spec: Json, axes: str) -> None:
        self.spec = spec
        self.axes = axes
        self._store: Any = None

    def __getstate__(self) -> Json:
        return {"spec": self.spec, "axes": self.axes, "_store": None}

    def open(self) -> Any:
        """Return the open tensorstore array, stored axes as they are."""
        import tensorstore as ts

        try:
            return ts.open(self.spec).result()
        except ValueError as error:
            raise InputError(f"expected an array at {_where(self.spec)}: {_first_words(error)}") from error

    def view(self) -> Any:
        """Return the array with axes (c, z, y, x) that all start at 0."""
        import tensorstore as ts

        if self._store is None:
            store = self.open()
            store = store[ts.d[:].translate_to[0]]
            kept = [a for a in self.axes if a in "czyx"]
            store = store[tuple(slice(None) if a in "czyx" else 0 for a in self.axes)]
            for missing in (a for a in "czyx" if a not in kept):
                store = store[ts.newaxis]
                kept.insert(0, missing)
            self._store = store[ts.d[tuple(kept.index(a) for a in "czyx")].transpose[:]]
        return self._store

    def read(self, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box, shape (c, z, y, x)."""
        try:
            return np.asarray(self.view()[(channels, *box.slices)].read(order="C").result())
        except ValueError as error:
            raise InputError(f"could not read box {box} of {_where(self.spec)}: {_first_words(error)}") from error

    def write(self, channels: slice, box: Box, array: NDArray[Any]) -> None:
        """Write a box, shape (c, z, y, x); returns when it is on disk."""
        self.view()[(channels, *box.slices)].write(array).result()


@dataclass(frozen=True)
class ChunkedSource:
    """The levels of a chunked volume."""

    arrays: tuple[StoredArray, ...]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box of a level, shape (c, z, y, x)."""
        return self.arrays[level].read(channels, box)


def _where(spec: Json) -> str:
    store = spec["kvstore"]
    return store if isinstance(store, str) else str(store["path"])


def _first_words(error: Exception) -> str:
    """Return tensorstore's message without the JSON that follows it."""
    return str(error).split(" [")[0].replace("\n", " ")
