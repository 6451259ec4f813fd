"""Chunked arrays on disks, object stores and web servers, by tensorstore."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.objects import Json, context, explained, explaining, first_words, kvstore
from cloudreg.space import Box


class AnotherArrayError(InputError):
    """An array is there, and not the one that was to be made."""


class StoredArray:
    """One array of a chunked format, seen as (c, z, y, x) whatever its stored axes.

    Parameters
    ----------
    path
        Folder or address. How to reach it is found out where it is opened: no secret is ever pickled.
    spec
        What tensorstore needs to open it, but for the place.
    axes
        One letter per stored axis out of ``tczyx``; t must have one entry.
    context
        tensorstore's, if it is not that of all arrays; it is not pickled.
    """

    def __init__(self, path: str, spec: Json, axes: str, *, context: Any = None) -> None:
        self._context = context
        self.path = path
        self.spec = spec
        self.axes = axes
        self._store: Any = None

    def __getstate__(self) -> Json:
        return {"path": self.path, "spec": self.spec, "axes": self.axes, "_store": None, "_context": None}

    def open(self, *, patient: bool = False) -> Any:
        """Return the open tensorstore array, stored axes as they are."""
        import tensorstore as ts

        try:
            spec = {**self.spec, "kvstore": kvstore(self.path)}
            return ts.open(spec, context=self._context or context(patient=patient)).result()
        except InputError:
            raise
        except ValueError as error:
            if "FAILED_PRECONDITION" in str(error):
                raise AnotherArrayError(f"expected the array at {self.path}: {first_words(error)}") from error
            if "NOT_FOUND" in str(error):
                raise InputError(f"expected an array at {self.path}: {first_words(error)}") from error
            raise explained(error, self.path, "open") from error

    def view(self) -> Any:
        """Return the array with axes (c, z, y, x) that all start at 0."""
        import tensorstore as ts

        if self._store is None:
            store = self.open(patient=True)
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
        with explaining(self.path, f"read box {box} of"):
            return np.asarray(self.view()[(channels, *box.slices)].read(order="C").result())

    def requiring_chunks(self) -> Self:
        """Return the array with an error in the place of the zeros of a chunk that is missing."""
        strict = copy.copy(self)
        strict.spec = {**self.spec, "fill_missing_data_reads": False}
        return strict

    @property
    def is_sharded(self) -> bool:
        """Whether many chunks share an object."""
        layout = self.view().chunk_layout
        return bool(layout.read_chunk.shape != layout.write_chunk.shape)

    def block_shape(self) -> tuple[int, int, int]:
        """Smallest box that may be written independently of others, z y x."""
        view = self.view()
        z, y, x = (min(c, n) for c, n in zip(view.chunk_layout.write_chunk.shape[1:], view.shape[1:], strict=True))
        return int(z), int(y), int(x)

    def begin_write(self, channels: slice, box: Box, array: NDArray[Any]) -> Pending:
        """Begin to write a box, shape (c, z, y, x)."""
        with explaining(self.path, f"write box {box} of"):
            return Pending(self.path, box, self.view()[(channels, *box.slices)].write(array))


@dataclass(frozen=True)
class Pending:
    """A box that is being written."""

    path: str
    box: Box
    future: Any

    def wait(self) -> None:
        """Return when it is on disk; raise what went wrong."""
        with explaining(self.path, f"write box {self.box} of"):
            self.future.result()


@dataclass(frozen=True)
class ChunkedSource:
    """The levels of a chunked volume."""

    arrays: tuple[StoredArray, ...]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box of a level, shape (c, z, y, x)."""
        return self.arrays[level].read(channels, box)
