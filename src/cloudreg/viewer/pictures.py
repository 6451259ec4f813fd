"""Planes of volumes as pictures: grey values, outlines of regions, maps in colour."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Box, Grid

if TYPE_CHECKING:
    from cloudreg.io import Volume

AXES = "zyx"
OUTLINE_RGB = (255, 170, 51)
_LONGEST_SIDE_PX = 640


@dataclass(frozen=True)
class Picture:
    """An image that a page can hold.

    Parameters
    ----------
    source
        ``data:`` address of the encoded image.
    caption
        One line under it.
    aspect
        Width over height.
    overlay
        ``data:`` address of a transparent image of the same size that lies on top, or nothing.
    """

    source: str
    caption: str
    aspect: float
    overlay: str = ""


@dataclass(frozen=True, eq=False)
class SmallVolume:
    """A volume shrunk to what fits on a screen.

    Parameters
    ----------
    array
        (z, y, x) float32.
    grid
        Where its voxels lie, in the micrometres of the volume it comes from.
    """

    array: NDArray[np.float32]
    grid: Grid

    def window(self, low: float = 1.0, high: float = 99.7) -> tuple[float, float]:
        """Return the grey values shown as black and white: percentiles of the voxels that hold something."""
        values = self.array[self.array != 0]
        if values.size == 0:
            return 0.0, 1.0
        black, white = np.percentile(values, (low, high))
        return float(black), float(white) if white > black else float(black) + 1.0


def shrink(volume: Volume, *, channel: int = 0) -> SmallVolume:
    """Read a volume at the resolution of a screen, as block means."""
    from cloudreg.io import read_resampled

    voxel_um = max(float(volume.grid.size_um.max()) / _LONGEST_SIDE_PX, min(volume.grid.voxel_size_um))
    array, grid = read_resampled(volume, voxel_um, channel=channel)
    return SmallVolume(array, grid)


def plane(array: NDArray[np.generic], axis: int, index: int) -> NDArray[np.generic]:
    """Return one plane of a (z, y, x) array; rows and columns are the two other axes, in order."""
    return np.asarray(np.take(array, index, axis=axis))


def label_plane(labels: Volume, like: Grid, axis: int, index: int) -> NDArray[np.generic]:
    """Return the labels on one plane of another grid that has the same axes, by nearest voxel.

    Only that plane of the label volume is read, at the pyramid level nearest to the grid's resolution.
    """
    level = labels.level_near(min(like.voxel_size_um))
    grid = labels.levels[level]
    positions = []
    for along in range(3):
        at = np.zeros((like.shape[along] if along != axis else 1, 3))
        at[:, along] = np.arange(like.shape[along]) if along != axis else index
        nearest = np.rint(grid.um_to_index(like.index_to_um(at))[:, along]).astype(int)
        positions.append(np.clip(nearest, 0, grid.shape[along] - 1))
    first = [int(p.min()) for p in positions]
    box = Box((first[0], first[1], first[2]), tuple(int(p.max()) + 1 for p in positions))  # type: ignore[arg-type]
    block = labels.read(box, level=level)
    picked = block[np.ix_(*(p - f for p, f in zip(positions, first, strict=True)))]
    return np.asarray(np.squeeze(picked, axis=axis))


def grey(values: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Map grey values to RGB, (rows, columns, 3); a square root opens the shadows of fluorescence."""
    black, white = window
    scaled = np.clip((values.astype(np.float32) - black) / (white - black), 0, 1)
    return np.repeat((255 * np.sqrt(scaled)).astype(np.uint8)[..., None], 3, axis=-1)


def coloured(
    values: NDArray[np.generic], colours: str, low: float, high: float, shown: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Map values to RGB with one of matplotlib's colour maps; where ``shown`` is false, dark grey."""
    from matplotlib import colormaps

    scaled = np.clip((values.astype(np.float64) - low) / (high - low if high > low else 1.0), 0, 1)
    picture = (255 * colormaps[colours](scaled)[..., :3]).astype(np.uint8)
    if shown is not None:
        picture[~shown] = 24
    return picture


def outlines(labels: NDArray[np.generic], rgb: Sequence[int] = OUTLINE_RGB) -> str:
    """Return a ``data:`` address of the borders between regions, on nothing."""
    border = np.zeros(labels.shape, dtype=bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    picture = np.zeros((*labels.shape, 4), dtype=np.uint8)
    picture[border] = (*rgb, 215)
    return _png(picture)


def enlarged(values: NDArray[np.generic], voxel_um: tuple[float, float], *, smooth: bool) -> NDArray[np.generic]:
    """Resample a plane to square pixels, with its longer side as long as pictures are.

    Parameters
    ----------
    values
        (rows, columns) or (rows, columns, 3).
    voxel_um
        Distance between rows and between columns.
    smooth
        Interpolate linearly, or take the nearest pixel (labels).
    """
    size = np.array(values.shape[:2]) * np.asarray(voxel_um)
    rows, columns = np.maximum(1, np.rint(size * _LONGEST_SIDE_PX / size.max())).astype(int)
    at = [
        np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        for n, m in zip((rows, columns), values.shape[:2], strict=True)
    ]
    if not smooth:
        return np.asarray(values[np.ix_(*(np.rint(a).astype(int) for a in at))])
    result = values.astype(np.float32)
    for axis, a in enumerate(at):
        below = np.floor(a).astype(int)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = (a - below).reshape([-1 if i == axis else 1 for i in range(values.ndim)]).astype(np.float32)
        result = np.take(result, below, axis=axis) * (1 - share) + np.take(result, above, axis=axis) * share
    return result


def square_plane(
    values: NDArray[np.generic], grid: Grid, axis: int, *, smooth: bool
) -> tuple[NDArray[np.generic], float]:
    """Return a plane of a grid with square pixels, and their size in micrometres."""
    rows, columns = (grid.voxel_size_um[a] for a in range(3) if a != axis)
    large = enlarged(values, (rows, columns), smooth=smooth)
    return large, values.shape[1] * columns / large.shape[1]


def place(grid: Grid, axis: int, index: int) -> str:
    """Say where a plane lies, along the array's own axis: a file's axes may be turned against those of its space."""
    at = np.zeros(3)
    at[axis] = index
    along = grid.affine[:3, axis] / grid.voxel_size_um[axis]
    return f"{AXES[axis]} = {along @ grid.index_to_um(at):,.0f} µm"


def with_scale_bar(picture: NDArray[np.uint8], pixel_um: float) -> tuple[NDArray[np.uint8], str]:
    """Draw a white bar of a round length into the lower left corner; return the picture and the length in words."""
    limit = 0.3 * picture.shape[1] * pixel_um
    power = 10.0 ** np.floor(np.log10(limit))
    length = max(step * power for step in (1, 2, 5) if step * power <= limit)
    rows, columns = picture.shape[:2]
    result = picture.copy()
    width = max(2, round(length / pixel_um))
    result[max(0, rows - 16) : max(1, rows - 12), 12 : min(columns, 12 + width)] = 255
    return result, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


def encode(picture: NDArray[np.uint8], caption: str, *, overlay: str = "") -> Picture:
    """Put an RGB picture into a ``data:`` address, as JPEG."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=88)
    return Picture(_address("jpeg", buffer.getvalue()), caption, picture.shape[1] / picture.shape[0], overlay)


def _png(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).quantize(2).save(buffer, "PNG", optimize=True)
    return _address("png", buffer.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def middle_planes(volume: SmallVolume, window: tuple[float, float], name: str) -> list[Picture]:
    """Return the three middle planes of a volume."""
    pictures = []
    for axis in range(3):
        index = volume.array.shape[axis] // 2
        values, pixel_um = square_plane(plane(volume.array, axis, index), volume.grid, axis, smooth=True)
        picture, bar = with_scale_bar(grey(values, window), pixel_um)
        pictures.append(encode(picture, f"{name}, {place(volume.grid, axis, index)}; bar {bar}"))
    return pictures
