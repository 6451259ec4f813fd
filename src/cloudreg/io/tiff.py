"""TIFF volumes: one file of planes, or a folder of one file per plane, here or in a bucket; read plane by plane.

A TIFF knows no origin and no letters; its voxel size may stand in OME-XML or ImageJ metadata.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import held_dtype, likely_kind
from cloudreg.io.remote import RemotePath
from cloudreg.io.tiff_metadata import damage_as_input_error, opened_tiff, tiff_handle, voxel_size_of
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

TIFF_SUFFIXES = (".tif", ".tiff")
_REQUESTS = 16
"""Files of a bucket that are read at once: each makes us wait for its answer."""
File = TypeVar("File", bound=Path | RemotePath)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Layout:
    """How the pages of a file make up c, z, y, x.

    Parameters
    ----------
    outer, inner
        Axes over the pages and within a page; together the order in which voxels are stored.
    offset
        Where the voxels start, if they lie one after another as they are.
    """

    outer: str
    inner: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None

    @property
    def czyx(self) -> tuple[int, int, int, int]:
        axes = self.outer + self.inner
        c, z, y, x = (self.shape[axes.index(a)] if a in axes else 1 for a in "czyx")
        return c, z, y, x

    def page(self, z: int, c: int | None) -> int:
        """Return the number of the page of a plane; of all its channels for ``c=None``."""
        if not self.outer:
            return 0
        at = [z if a == "z" else c or 0 for a in self.outer]
        return int(np.ravel_multi_index(at, self.shape[: len(self.outer)]))


class TiffFile:
    """The voxels of one TIFF file."""

    def __init__(self, file: Path | RemotePath, layout: _Layout) -> None:
        self.file = file
        self.layout = layout
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[TiffFile], tuple[Path | RemotePath, _Layout]]:
        return TiffFile, (self.file, self.layout)

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box, shape (c, z, y, x); there is one level."""
        layout = self.layout
        with damage_as_input_error(self.file):
            if layout.offset is not None and layout.inner[-2:] == "yx":
                return self._read_rows(layout.offset, channels, box)
            if layout.offset is not None:
                if isinstance(self.file, RemotePath):
                    raise ValueError("its colours lie side by side in each pixel: copy it here")
                stored = np.memmap(self.file, layout.dtype, "r", layout.offset, layout.shape)
                return np.array(_as_czyx(stored, layout.inner)[(channels, *box.slices)])
            result = np.empty((channels.stop - channels.start, *box.shape), layout.dtype)
            separate = range(channels.start, channels.stop) if "c" in layout.outer else (None,)
            for i, z in enumerate(range(box.start[0], box.stop[0])):
                for j, c in enumerate(separate):
                    plane = _as_czyx(self._decoded(layout.page(z, c)), layout.inner)
                    chosen = channels if c is None else slice(0, 1)
                    into = slice(None) if c is None else slice(j, j + 1)
                    result[into, i] = plane[(chosen, 0, *box.slices[1:])]
            return result

    def _read_rows(self, offset: int, channels: slice, box: Box) -> NDArray[Any]:
        """Read a box of voxels that lie one after another as they are, by whole rows."""
        layout = self.layout
        size = layout.dtype.itemsize
        width = layout.shape[-1]
        result = np.empty((channels.stop - channels.start, *box.shape), layout.dtype)
        rows = np.empty((box.shape[1], width), layout.dtype)
        planes = layout.inner[:-2]
        counts = layout.shape[:-2]
        with self.file.open("rb", buffering=0) as file:
            for i, z in enumerate(range(box.start[0], box.stop[0])):
                for j, c in enumerate(range(channels.start, channels.stop)):
                    page = np.ravel_multi_index([z if a == "z" else c for a in planes], counts) if planes else 0
                    file.seek(offset + (int(page) * layout.shape[-2] + box.start[1]) * width * size)
                    # Whole rows go where they belong at once.
                    into: Any = result[j, i] if box.shape[2] == width else rows
                    if file.readinto(memoryview(into).cast("B")) != into.nbytes:
                        raise ValueError("it ends within a plane")
                    if into is rows:
                        result[j, i] = rows[:, box.slices[2]]
        return result

    def _decoded(self, index: int) -> NDArray[Any]:
        import tifffile

        if not hasattr(self._local, "pages"):
            self._local.pages = tifffile.TiffFile(tiff_handle(self.file)).series[0].pages
        page = self._local.pages[index]
        if page is None:
            raise ValueError(f"plane {index} is missing")
        return np.asarray(page.asarray())


@dataclass(frozen=True)
class TiffSeries:
    """The voxels of a folder of 2D TIFF files."""

    files: tuple[Path | RemotePath, ...]
    layouts: tuple[_Layout, ...]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box, shape (c, z, y, x); there is one level."""
        result = np.empty((channels.stop - channels.start, *box.shape), self.layouts[0].dtype)
        plane = Box((0, *box.start[1:]), (1, *box.stop[1:]))

        def fill(i: int) -> None:
            z = box.start[0] + i
            result[:, i] = TiffFile(self.files[z], self.layouts[z]).read(0, channels, plane)[:, 0]

        _for_each(fill, range(box.shape[0]), self.files[0])
        return result


def read_tiff(file: Path | RemotePath, *, ignore_scale: bool) -> Volume:
    """Describe one TIFF file."""
    with opened_tiff(file) as tif:
        layout = _layout(tif, file)
        size = (1.0, 1.0, 1.0) if ignore_scale else voxel_size_of(tif, file, single=layout.czyx[1] == 1)
    channels, *shape = layout.czyx
    return _volume(str(file), "tiff", layout.dtype, channels, shape, size, TiffFile(file, layout))


def read_tiff_series(
    folder: Path | RemotePath, *, ignore_scale: bool, endings: tuple[str, ...] = TIFF_SUFFIXES
) -> Volume:
    """Describe a folder of 2D TIFF files, one a plane, in natural order of their names.

    Every file's header is read, so that a bad file is named before hours of work and not after.

    Parameters
    ----------
    folder
        Files of other endings are not looked at.
    ignore_scale
        Don't read voxel sizes.
    endings
        Of the planes' names, in small letters.
    """
    there = (folder / name for name in folder.files()) if isinstance(folder, RemotePath) else folder.iterdir()
    planes = [p for p in there if p.name.lower().endswith(endings) and p.name[0] != "." and p.parent == folder]
    files = natural_order(planes)
    if not files:
        raise InputError(f"expected a volume or a folder of TIFF planes at {folder}, got a folder of neither")
    size = (1.0, 1.0, 1.0)
    if not ignore_scale:
        with opened_tiff(files[0]) as tif:
            size = voxel_size_of(tif, files[0], single=False)
    layouts = _for_each(_layout_of, files, files[0])
    for file, layout in zip(files, layouts, strict=True):
        if layout.czyx[1] != 1:
            raise InputError(f"expected one plane in each file of {folder}, got {layout.czyx[1]} in {file.name}")
        first = layouts[0]
        if (layout.czyx, layout.dtype.name) != (first.czyx, first.dtype.name):
            raise InputError(
                f"expected planes of {_words(first)} as in {files[0].name}, got {_words(layout)} in {file}: "
                "replace that file"
            )
    channels, _, y, x = layouts[0].czyx
    source = TiffSeries(tuple(files), tuple(layouts))
    return _volume(str(folder), "tiff-series", layouts[0].dtype, channels, [len(files), y, x], size, source)


def natural_order(files: Iterable[File]) -> list[File]:
    """Sort by name so that plane 10 comes after plane 9."""

    def key(file: File) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", file.name)
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]

    return sorted(files, key=lambda file: (key(file), file.name))


def _for_each(task: Callable[[Item], Result], items: Iterable[Item], file: Path | RemotePath) -> list[Result]:
    """Call a task on each item in turn, or on many at once where files are far away, as this one is."""
    if isinstance(file, Path):
        return [task(item) for item in items]
    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(task, items))


def _layout_of(file: Path | RemotePath) -> _Layout:
    with opened_tiff(file) as tif:
        return _layout(tif, file)


def _layout(tif: Any, file: Path | RemotePath) -> _Layout:
    series = tif.series[0]
    sizes = [(a, int(n)) for a, n in zip(series.axes, series.shape, strict=True) if n != 1 or a in "YX"]
    # Q (unknown), I (sequence) and T are how stacks of planes are saved by programs that don't say Z.
    others = [a for a, _ in sizes if a not in "CSYX"]
    channels = [a for a, _ in sizes if a in "CS"]
    if len(others) > 1 or len(channels) > 1 or [a for a, _ in sizes if a in "YX"] != ["Y", "X"]:
        raise InputError(f"expected planes of one volume in {file}, got axes {series.axes} of {series.shape}")
    axes = "".join({"C": "c", "S": "c", "Y": "y", "X": "x"}.get(a, "z") for a, _ in sizes)
    shape = tuple(n for _, n in sizes)
    dtype = held_dtype(series.dtype, str(file))
    keyframe = series.keyframe
    if series.dataoffset is not None and keyframe.is_memmappable and series.dtype == dtype:
        return _Layout("", axes, shape, np.dtype(series.dtype).newbyteorder(tif.byteorder), int(series.dataoffset))
    count = sum(1 for a in keyframe.axes if a in "SYX")
    if "z" in axes[-count:]:
        raise InputError(f"expected 2D pages in {file}, got {keyframe.axes}: convert it to planes")
    return _Layout(axes[:-count], axes[-count:], shape, dtype, None)


def _volume(
    path: str,
    form: str,
    dtype: np.dtype[Any],
    channels: int,
    shape: list[int],
    size: tuple[float, float, float],
    source: TiffFile | TiffSeries,
) -> Volume:
    held = held_dtype(dtype, path)
    return Volume(
        path=path,
        format=form,
        kind=likely_kind(held),
        dtype=held,
        channels=channels,
        levels=(Grid.from_spacing(shape, size),),
        chunk=(1, shape[1], shape[2]),
        source=source,
    )


def _as_czyx(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return an array with these axes as (c, z, y, x)."""
    array = array.transpose([axes.index(a) for a in "czyx" if a in axes])
    return array[tuple(slice(None) if a in axes else np.newaxis for a in "czyx")]


def _words(layout: _Layout) -> str:
    c, _, y, x = layout.czyx
    return f"{y} x {x} {layout.dtype.name}" + (f" x {c} channels" if c > 1 else "")
