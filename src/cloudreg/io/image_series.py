"""A folder of planes in any picture format, or of those TIFF files that have a certain ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import held_dtype
from cloudreg.io.lengths import checked_voxel_size
from cloudreg.io.tiff import TIFF_SUFFIXES, natural_order, read_tiff_series
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid


def read_image(file: Path) -> NDArray[Any]:
    """Read one grey picture, (y, x).

    Raises
    ------
    InputError
        If it is no picture, or has more than one plane or channel.
    """
    import imagecodecs
    import tifffile

    try:
        tiff = file.suffix.lower() in (".tif", ".tiff")
        pixels = np.asarray(tifffile.imread(file) if tiff else imagecodecs.imread(file))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected a picture at {file} ({reason}): replace or remove that file") from error
    if pixels.ndim != 2:
        raise InputError(f"expected one grey plane in {file}, got an array of {pixels.shape}")
    return pixels


def open_image_series(folder: Path, extension: str, voxel_size_um: Sequence[float]) -> Volume:
    """Describe a folder of planes whose names end alike, in natural order of their names.

    Parameters
    ----------
    folder
        Other files in it are not looked at.
    extension
        Such as ``"tif"`` or ``"png"``.
    voxel_size_um
        z, y, x.

    Raises
    ------
    InputError
        If there is no such file, or one is no picture; files other than TIFF are looked at when they are read.
    """
    ending = "." + extension.lower().lstrip(".")
    if not folder.is_dir():
        raise InputError(
            f"expected a folder of {ending} files at {folder}, got {'a file' if folder.exists() else 'nothing'}"
        )
    files = natural_order(p for p in folder.iterdir() if p.name.lower().endswith(ending) and p.name[0] != ".")
    if not files:
        raise InputError(f"expected {ending} files in {folder}, got none: check the extension")
    size = checked_voxel_size(voxel_size_um, str(folder))
    if ending in TIFF_SUFFIXES:
        # Of uncompressed planes, only the rows asked for are read.
        series = read_tiff_series(folder, ignore_scale=True, endings=(ending,))
        return replace(series, levels=(Grid.from_spacing(series.grid.shape, size),))
    first = read_image(files[0])
    dtype = held_dtype(first.dtype, str(files[0]))
    return Volume(
        path=str(folder),
        format="image-series",
        kind="image",
        dtype=dtype,
        channels=1,
        levels=(Grid.from_spacing((len(files), *first.shape), size),),
        chunk=(1, *first.shape),
        source=_Series(tuple(files), first.shape, dtype),
    )


@dataclass(frozen=True)
class _Series:
    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return a box, shape (1, z, y, x)."""
        result = np.empty((1, *box.shape), self.dtype)
        for i, z in enumerate(range(box.start[0], box.stop[0])):
            pixels = read_image(self.files[z])
            if pixels.shape != self.shape or held_dtype(pixels.dtype, str(self.files[z])) != self.dtype:
                raise InputError(
                    f"expected planes of {self.shape} {self.dtype} as in {self.files[0].name}, got {pixels.shape} "
                    f"{pixels.dtype} in {self.files[z]}: replace that file"
                )
            result[0, i] = pixels[box.slices[1:]]
        return result
