"""What TIFF files say about their voxels, and whether they are whole."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cloudreg.errors import InputError
from cloudreg.io.lengths import VoxelSizeUnknownError, micrometres_per
from cloudreg.io.remote import RemotePath


class _Complaints(logging.Handler):
    """tifffile tells of damage in its log and goes on with what is left; we must not. Of this thread's files only."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.texts.append(record.getMessage())


@contextmanager
def damage_as_input_error(file: Path | RemotePath) -> Iterator[None]:
    """Name the file when its voxels can't be read."""
    import tifffile
    from imagecodecs import DelayedImportError

    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except DelayedImportError as error:
        raise InputError(f"{file} needs a codec that is not installed: {error}") from error
    # imagecodecs raises subclasses of RuntimeError for damaged data.
    except (tifffile.TiffFileError, ValueError, OSError, IndexError, struct.error, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"expected a whole TIFF file, got {file}, which is damaged ({reason}): copy it again"
        ) from error


def tiff_handle(file: Path | RemotePath) -> Any:
    """Return what tifffile opens: the path, or an address as a file."""
    return file.open() if isinstance(file, RemotePath) else file


@contextmanager
def opened_tiff(file: Path | RemotePath) -> Iterator[Any]:
    """Open a TIFF file and make sure that all its pages are there.

    Raises
    ------
    InputError
        If the file is no TIFF, or ends too early.
    """
    import tifffile

    complaints = _Complaints()
    log = logging.getLogger("tifffile")
    log.addHandler(complaints)
    try:
        with damage_as_input_error(file), tifffile.TiffFile(tiff_handle(file)) as tif:
            series = tif.series[0]
            pages = len(tif.pages)
            last = tif.pages[pages - 1]
            ends = [a + n for a, n in zip(last.dataoffsets, last.databytecounts, strict=False)]
            if series.dataoffset is not None:
                ends.append(series.dataoffset + series.nbytes)
            if complaints.texts:
                raise ValueError(complaints.texts[0])
            end = max(ends, default=0)
            if isinstance(file, RemotePath) and end:
                tif.filehandle.seek(end - 1)
                if len(tif.filehandle.read(1)) != 1:
                    raise ValueError(f"it ends before byte {end}")
            elif end > tif.filehandle.size:
                raise ValueError(f"it ends at byte {tif.filehandle.size} of {end}")
            yield tif
    finally:
        log.removeHandler(complaints)


def voxel_size_of(tif: Any, file: Path | RemotePath, *, single: bool) -> tuple[float, float, float]:
    """Return the voxel size, z y x in micrometres, from OME-XML or ImageJ metadata.

    Parameters
    ----------
    single
        Whether there is one plane only, which may do without a thickness.

    Raises
    ------
    InputError
        If the file doesn't say.
    """
    found = _from_ome(tif, file) or _from_imagej(tif, file)
    z, y, x = (found.get(a) for a in "zyx")
    z = y if z is None and single else z
    if z is None or y is None or x is None:
        raise VoxelSizeUnknownError(
            f"expected a voxel size in {file}, which has none or half of one: give --voxel-size Z Y X"
        )
    return z, y, x


def _from_ome(tif: Any, file: Path | RemotePath) -> dict[str, float]:
    if not tif.ome_metadata:
        return {}
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError as error:
        raise VoxelSizeUnknownError(f"expected OME-XML in {file}: {error}; give --voxel-size Z Y X") from error
    pixels = next((e for e in root.iter() if e.tag.endswith("Pixels")), None)
    sizes = {}
    for axis in "zyx":
        name = f"PhysicalSize{axis.upper()}"
        if pixels is not None and name in pixels.attrib:
            unit = pixels.attrib.get(f"{name}Unit", "µm")
            sizes[axis] = float(pixels.attrib[name]) * micrometres_per(unit, str(file))
    return {a: v for a, v in sizes.items() if v > 0}


def _from_imagej(tif: Any, file: Path | RemotePath) -> dict[str, float]:
    """Planes' distance is ``spacing``, pixels are per unit in the resolution tags."""
    metadata = tif.imagej_metadata or {}
    unit = str(metadata.get("unit", "")).encode().decode("unicode_escape", errors="replace")
    if not unit or unit == "pixel":
        return {}
    um = micrometres_per(unit, str(file))
    tags = tif.pages[0].tags
    sizes = {"z": float(metadata["spacing"]) * um} if metadata.get("spacing") else {}
    for axis, name in (("y", "YResolution"), ("x", "XResolution")):
        if name in tags:
            count, per = tags[name].value
            sizes |= {axis: um * per / count} if count else {}
    return sizes
