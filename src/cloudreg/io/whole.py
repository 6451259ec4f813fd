"""Files that are read and written as one array."""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Box


class WholeFile(ABC):
    """Reads a file at the first box asked for, and keeps it; a copy sent to a worker reads it again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._array: NDArray[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_array", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._array = None
        self._lock = threading.Lock()

    @abstractmethod
    def load(self) -> NDArray[Any]:
        """Return the whole array, shape (c, z, y, x)."""

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box, shape (c, z, y, x); there is one level."""
        with self._lock:
            if self._array is None:
                self._array = self.load()
        return np.asarray(self._array[(channels, *box.slices)])


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path``, with the same suffix, that becomes ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed run leaves behind, the next one replaces.
    temporary = path.with_name(f".unfinished.{path.name}")
    try:
        with explaining_full_disk(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explaining_full_disk(path: Path) -> Iterator[None]:
    """Say in our words that there is no room for a file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"could not write {path}: the disk is full: make room and run the same command again"
        ) from error
