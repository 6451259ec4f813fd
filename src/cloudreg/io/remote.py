"""Files of a bucket or a web server that look like files here: read in parts, and never copied whole."""

from __future__ import annotations

import errno
import functools
import io
import os
from dataclasses import dataclass
from typing import Any

from cloudreg.errors import InputError
from cloudreg.io.objects import context, explaining, is_remote, kvstore, list_files, plain_address, read_files

_READ_AHEAD = 1 << 16
_NO_END = 1 << 62


@dataclass(frozen=True)
class RemotePath:
    """The address of a file or folder, with what we need of a `pathlib.Path`."""

    address: str

    @property
    def name(self) -> str:
        """What stands after the last slash."""
        return self.address.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        return RemotePath(self.address.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.address.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.address

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        InputError
            If the server doesn't answer, or refuses.
        """
        content = read_files(str(self.parent), [self.name]).get(self.name)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address)
        return content

    def exists(self) -> bool:
        """Whether it is a file."""
        return self.name in read_files(str(self.parent), [self.name])

    def files(self) -> list[str]:
        """Return the names of all files in the folder and in its folders, with slashes, sorted."""
        return list_files(self.address)

    def open(self, mode: str = "rb", buffering: int = 0) -> RemoteFile:
        """Return it as a binary file to read, whatever ``mode`` and ``buffering``."""
        return RemoteFile(self)


class RemoteFile(io.RawIOBase):
    """A binary file to read from; each read is a request for those bytes, with some more after them.

    Its size isn't asked for: seeking from the end is relative to a place far beyond it.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._at = 0
        self._start = 0
        self._held = b""

    @property
    def name(self) -> str:
        """Of the file."""
        return self._path.name

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: _NO_END}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; fewer bytes at the end of the file."""
        view = memoryview(buffer).cast("B")
        if not self._start <= self._at <= self._at + len(view) <= self._start + len(self._held):
            self._held, self._start = self._fetch(self._at, len(view)), self._at
        part = self._held[self._at - self._start :][: len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _fetch(self, start: int, count: int) -> bytes:
        """Return the bytes asked for and what follows them; what there is, if the file ends before."""
        store, key = _store(str(self._path.parent)), self._path.name
        for stop in (start + max(count, _READ_AHEAD), None):
            if start >= _NO_END:
                return b""
            try:
                with explaining(str(self._path), "read"):
                    found = store.read(key, byte_range=slice(start, stop)).result()
            except InputError as error:
                if "byte range" not in str(error).lower() and "OUT_OF_RANGE" not in str(error):
                    raise
                continue
            if found.state == "missing":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
            return bytes(found.value)
        return b""


def place_of(text: str) -> RemotePath | None:
    """Return the address that a text is; None if it is a path on this machine."""
    address = plain_address(text)
    return RemotePath(address) if is_remote(address) else None


@functools.lru_cache(maxsize=64)
def _store(folder: str) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(kvstore(folder), context=context()).result()
