"""2021: background and vignetting of COLM tiles, taken off.

Planes as they were recorded stay; beside each comes an evened copy, ``…_corrected.tiff``, which everything that reads
the acquisition then takes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_free_space
from cloudreg.flatfield import estimate_shading, save_shading
from cloudreg.io import to_dtype
from cloudreg.io.image_series import read_image
from cloudreg.scripts._legacy import moved, run, text_or_none
from cloudreg.scripts._storage import store
from cloudreg.settings import ShadingSettings
from cloudreg.tiles.colm import CORRECTED, ColmAcquisition, is_corrected, open_colm
from cloudreg.tiles.plane_files import write_plane

moved("correct_raw_data", "cloudreg correct-tiles")

__all__ = ["correct_raw_data", "correct_tile", "correct_tiles", "get_background_value", "sum_tiles"]

_MOST_SAMPLES = ShadingSettings().samples


def correct_raw_data(
    raw_data_path: str,
    channel: int,
    subsample_factor: int = 2,
    log_s3_path: str | None = None,
    background_correction: bool = True,
    background_tile: str | None = None,
) -> None:
    """Find background and vignetting of a channel, and write an evened copy of each of its planes.

    Parameters
    ----------
    raw_data_path
        ``VW0`` of an acquisition, with its two text files beside it; or the folder of all three.
    channel
        Which one.
    subsample_factor
        The vignetting is found on one of so many planes, and on no more than 512.
    log_s3_path
        Where the vignetting and the background go, in a folder ``shading``.
    background_correction
        Subtract the background.
    background_tile
        A picture of nothing, whose mean is the background; otherwise it is found in the planes.

    Raises
    ------
    InputError
        If there is no such channel, it is corrected already, or the disk is too small.
    """
    acquisition = open_colm(Path(raw_data_path), corrected=False)
    acquisition.require_channel(channel)
    if subsample_factor < 1:
        raise InputError(f"expected a factor of at least 1 to subsample by, got {subsample_factor}")
    files, folder = _planes(acquisition, channel), Path(str(acquisition.path))
    settings = ShadingSettings(
        samples=min(_MOST_SAMPLES, max(16, len(files) // subsample_factor)),
        background=_given_background(background_correction, background_tile),
    )
    key = hashlib.sha256((acquisition.fingerprint([channel]) + settings.model_dump_json()).encode()).hexdigest()
    ledger = Ledger(folder / f".correct_{channel:02d}.{key[:16]}.ledger")
    if not len(ledger) and any(_corrected_path(file).exists() for file in files):
        raise InputError(
            f"channel {channel} of {acquisition.path} is corrected already: remove its files that end in {CORRECTED}"
        )
    waiting = sum(str(file) not in ledger for file in files)
    _, height, width = acquisition.tile_shape
    require_free_space(folder, waiting * (height * width * acquisition.dtype.itemsize + 512), "evened planes")
    with Engine() as engine:
        shading = estimate_shading(acquisition, channel, settings, engine)
        ledger.mark("begun")
        task = partial(correct_tile, bias=1 / shading.flat, background_value=shading.background)
        engine.run(task, [str(file) for file in files], label="correct tiles", unit="planes", ledger=ledger)
        if log_s3_path:
            with tempfile.TemporaryDirectory(prefix="cloudreg-shading-") as made:
                save_shading(shading, made)
                store(Path(made), f"{log_s3_path.rstrip('/')}/shading/channel_{channel:02d}", engine)
    ledger.clear()


def correct_tile(raw_tile_path: str, bias: ArrayLike, background_value: float | None = None) -> str:
    """Write the evened copy of a plane beside it.

    Parameters
    ----------
    raw_tile_path
        The plane as it was recorded, which stays.
    bias
        What is multiplied by what is left above the background, (height, width).
    background_value
        What the camera reads without light; nothing is subtracted by default.

    Returns
    -------
    str
        Path of the copy, of the same type: rounded and clipped, and at least 1 where the camera saw anything at all,
        because 0 stands for what was not observed.
    """
    raw = read_image(Path(raw_tile_path))
    factor = np.asarray(bias, dtype=np.float32)
    if factor.shape != raw.shape:
        raise InputError(f"expected a correction of {raw.shape} for {raw_tile_path}, got one of {factor.shape}")
    even = np.maximum(raw - np.float32(background_value or 0), 0, dtype=np.float32) * factor
    if raw.dtype.kind in "iu":
        even[raw > 0] = np.maximum(even[raw > 0], 1)
    path = _corrected_path(Path(raw_tile_path))
    write_plane(path, to_dtype(even, raw.dtype))
    return str(path)


def correct_tiles(tiles: Sequence[str], bias: ArrayLike, background_value: float | None = None) -> list[str]:
    """Write the evened copies of some planes; see `correct_tile`."""
    return [correct_tile(tile, bias, background_value) for tile in tiles]


def get_background_value(raw_data_path: str) -> float:
    """Return what the camera reads without light, as the planes of the first channel show."""
    acquisition = open_colm(Path(raw_data_path), corrected=False)
    with Engine() as engine:
        return estimate_shading(acquisition, acquisition.channels[0], ShadingSettings(method="none"), engine).background


def sum_tiles(files: Sequence[str]) -> NDArray[np.float64]:
    """Return the sum of some planes of the same size, (height, width)."""
    if not len(files):
        raise InputError("expected files to sum up, got none")
    total = read_image(Path(files[0])).astype(np.float64)
    for file in files[1:]:
        plane = read_image(Path(file))
        if plane.shape != total.shape:
            raise InputError(f"expected planes of {total.shape} as in {files[0]}, got {plane.shape} in {file}")
        total += plane
    return total


def _given_background(wanted: bool, tile: str | None) -> float | None:
    if not wanted:
        return 0.0
    return None if tile is None else float(read_image(Path(tile)).mean())


def _planes(acquisition: ColmAcquisition, channel: int) -> list[Path]:
    files = [
        Path(str(acquisition.plane_path(tile, channel, plane)))
        for tile in acquisition.tiles
        for start, stop in acquisition.planes(tile, channel)
        for plane in range(start, stop)
    ]
    evened = [file for file in files if is_corrected(file.name)]
    if evened:
        raise InputError(f"expected planes as they were recorded, got {evened[0]}: it is corrected already")
    return files


def _corrected_path(file: Path) -> Path:
    return file.with_name(f"{file.stem}{CORRECTED}.tiff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.correct_raw_data", description="even out COLM tiles")
    parser.add_argument("-raw_data_path", required=True, help="VW0 of an acquisition")
    parser.add_argument("--log_s3_path", type=text_or_none, default=None, help="where the vignetting goes")
    parser.add_argument("-channel", required=True, type=int, help="channel")
    parser.add_argument("--subsample_factor", type=int, default=5, help="one of so many planes is looked at")
    parser.add_argument("--background_tile", type=text_or_none, default=None, help="picture of nothing")
    return run(lambda given: correct_raw_data(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
