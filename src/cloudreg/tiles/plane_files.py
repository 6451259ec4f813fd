"""One plane, one TIFF: checked, read in part, written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.remote import RemotePath
from cloudreg.io.tiff_metadata import tiff_handle

# What tifffile and its decoders raise on a damaged file; imagecodecs' errors are RuntimeErrors.
_DAMAGED = (OSError, ValueError, RuntimeError, IndexError, KeyError, TypeError, struct.error, zlib.error)


class DamagedPlaneError(InputError):
    """A plane can't be read: it is no TIFF, or not a whole one."""


class PlaneKind(NamedTuple):
    """What all planes of an acquisition have in common."""

    height: int
    width: int
    dtype: np.dtype[np.generic]


def inspect_plane(path: Path | RemotePath) -> PlaneKind:
    """Return a plane's size and type from its header, and check that the file holds all the data it promises.

    Raises
    ------
    DamagedPlaneError
        If it is no TIFF, or its end is missing.
    InputError
        If it is no single greyscale image of 8 or 16 bit unsigned integers.
    """
    import tifffile

    try:
        with tifffile.TiffFile(tiff_handle(path)) as file:
            page = _only_page(file, path)
            end = max(a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True))
            kind = _kind(page)
            size = file.filehandle.size if isinstance(path, Path) else _size_of_remote(file, end)
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, error) from error
    if end > size:
        raise DamagedPlaneError(
            f"{path} is truncated: its header promises {end} bytes, it has {size}; copy the file again"
        )
    if kind.dtype not in (np.uint8, np.uint16):
        raise InputError(f"expected unsigned integers of 8 or 16 bits in {path}, got {kind.dtype}")
    return kind


def read_plane(path: Path | RemotePath, kind: PlaneKind, rows: slice, columns: slice, out: NDArray[np.generic]) -> None:
    """Read a part of a plane into an array.

    Only the rows asked for are read where the file is not compressed.

    Parameters
    ----------
    path
        The plane's file.
    kind
        What the plane must be.
    rows, columns
        With bounds, and step 1.
    out
        (rows, columns), written to.

    Raises
    ------
    InputError
        If the plane is damaged, or of another kind.
    """
    import tifffile

    try:
        with tifffile.TiffFile(tiff_handle(path)) as file:
            page = _only_page(file, path)
            found = _kind(page)
            if found != kind:
                raise unlike(path, found, kind)
            if page.is_contiguous and page.compression == 1 and page.predictor == 1:
                # Byte order is the file's; a big-endian plane is swapped as it is copied.
                stored = kind.dtype.newbyteorder(file.byteorder)
                first = page.dataoffsets[0] + rows.start * kind.width * stored.itemsize
                count = (rows.stop - rows.start) * kind.width
                file.filehandle.seek(first)
                content = file.filehandle.read(count * stored.itemsize)
                if len(content) < count * stored.itemsize:
                    raise InputError(f"{path} is truncated: copy the file again")
                pixels = np.frombuffer(content, stored)
                out[:] = pixels.reshape(-1, kind.width)[:, columns]
            else:
                out[:] = page.asarray()[rows, columns]
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, error) from error


def write_plane(path: Path, plane: NDArray[np.generic]) -> None:
    """Write a plane (rows, columns) as an uncompressed TIFF; it appears under its name only when it is whole."""
    import tifffile

    unfinished = path.with_name(f".{path.name}.unfinished")
    tifffile.imwrite(unfinished, plane, photometric="minisblack", metadata=None)
    unfinished.replace(path)


def unlike(path: Path | RemotePath, found: PlaneKind, expected: PlaneKind) -> InputError:
    """Return the error for a plane that is not like the others."""
    return InputError(
        f"expected {expected.height} x {expected.width} pixels of {expected.dtype} in {path}, "
        f"got {found.height} x {found.width} of {found.dtype}: all planes of an acquisition must be alike"
    )


def _size_of_remote(file: Any, end: int) -> int:
    """Return a size that is large enough, if the last byte of the pixels is there."""
    file.filehandle.seek(end - 1)
    return end if len(file.filehandle.read(1)) else 0


def _only_page(file: Any, path: Path | RemotePath) -> Any:
    if len(file.pages) != 1 or len(file.pages[0].shape) != 2:
        raise InputError(f"expected one greyscale image in {path}, got {len(file.pages)} of {file.pages[0].shape}")
    return file.pages[0]


def _kind(page: Any) -> PlaneKind:
    height, width = page.shape
    return PlaneKind(int(height), int(width), np.dtype(page.dtype))


def _damaged(path: Path | RemotePath, error: BaseException) -> DamagedPlaneError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DamagedPlaneError(
        f"{path} can't be read as a TIFF ({reason}): copy the file again, or remove it to leave a gap"
    )
