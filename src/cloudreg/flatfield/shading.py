"""The shading of a channel's tiles: what the camera adds, and how the light falls off."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError

_FLAT = "flat.tif"
_NUMBERS = "shading.json"
_PICTURE = "shading.png"


@dataclass(frozen=True, eq=False)
class Shading:
    """A camera sees ``background + flat * tissue``.

    Parameters
    ----------
    flat
        (height, width), float32, above 0, of mean 1.
    background
        What a pixel reads without light.
    """

    flat: NDArray[np.float32]
    background: float

    def require_size(self, height: int, width: int) -> None:
        """Raise an `InputError` if it is not the field of tiles of this size."""
        if self.flat.shape != (height, width):
            raise InputError(
                f"expected a flat field of {height} x {width} pixels, got one of {self.flat.shape[0]} x "
                f"{self.flat.shape[1]}: it is of other tiles"
            )

    def apply(
        self, planes: NDArray[np.generic], rows: slice = slice(None), columns: slice = slice(None)
    ) -> NDArray[np.float32]:
        """Return tissue brightness: the background taken off, and the fall-off undone.

        Parameters
        ----------
        planes
            (planes, rows, columns) as recorded.
        rows, columns
            Which part of the tile it is; the whole by default.

        Returns
        -------
        array
            The same shape, float32, 0 or more. Lost planes, which are all zero, stay zero.
        """
        corrected = planes.astype(np.float32)
        # A lost plane stays zero: 0 minus the background is below zero.
        corrected -= np.float32(self.background)
        np.maximum(corrected, 0, out=corrected)
        corrected /= self.flat[rows, columns]
        return corrected


def save_shading(shading: Shading, folder: str | Path) -> None:
    """Write ``flat.tif``, ``shading.json`` and a picture; the numbers last, as the mark of a whole folder."""
    import tifffile

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / _FLAT, shading.flat, photometric="minisblack", metadata=None)
    _draw(shading, folder / _PICTURE)
    numbers = {"background": shading.background, "darkest": float(shading.flat.min())}
    (folder / _NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n")


def load_shading(folder: str | Path) -> Shading:
    """Read what `save_shading` wrote.

    Raises
    ------
    InputError
        If the folder does not hold it.
    """
    import tifffile

    folder = Path(folder)
    try:
        background = float(json.loads((folder / _NUMBERS).read_text())["background"])
        flat = tifffile.imread(folder / _FLAT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected a flat field in {folder} ({_FLAT}, {_NUMBERS}): {reason}") from error
    if flat.ndim != 2 or not np.isfinite(flat).all() or flat.min() <= 0:
        raise InputError(f"expected {folder / _FLAT} to be one image of numbers above 0")
    return Shading(flat.astype(np.float32), background)


def _draw(shading: Shading, path: Path) -> None:
    # Figure alone, without pyplot: no window system, and safe in threads.
    from matplotlib.figure import Figure

    height, width = shading.flat.shape
    step = max(1, max(height, width) // 512)
    figure = Figure(figsize=(6, 5))
    axes = figure.add_axes((0.12, 0.1, 0.7, 0.82))
    image = axes.imshow(shading.flat[::step, ::step], cmap="gray", extent=(0, width, height, 0))
    coarse = max(1, max(height, width) // 128)
    y, x = (np.arange(0, n, coarse) + 0.5 for n in (height, width))
    axes.contour(x, y, shading.flat[::coarse, ::coarse], linewidths=0.8)
    axes.set_title(f"flat field, background {shading.background:.1f}")
    axes.set_xlabel("x (px)")
    axes.set_ylabel("y (px)")
    figure.colorbar(image, cax=figure.add_axes((0.85, 0.1, 0.03, 0.82)), label="brightness, mean 1")
    figure.savefig(path, dpi=100)
