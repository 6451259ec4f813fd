"""Displacements of neighbours as TeraStitcher's step 2 measures them: on maximum projections.

1. The depth is cut into layers. In each, the nominal overlap of two neighbours is projected along z, y and x: the
   largest value counts.
2. Each pair of projections is compared by normalised cross-correlation, at every shift within the search radius of both
   of its axes, over what both show at that shift.
3. A peak's height and its width along both axes say how far it can be believed. Each axis of the displacement is in
   two projections: they are averaged if they agree, and otherwise the better one counts.

Sizes are whole pixels, as in TeraStitcher. `cloudreg.tiles.Project` has its steps 3 and 4, and
`cloudreg.stitching.tree` its step 5.

References
----------
A. Bria, G. Iannello, "TeraStitcher: a tool for fast automatic 3D-stitching of teravoxel-sized microscopy images", BMC
Bioinformatics 13 (2012), doi:10.1186/1471-2105-13-316.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cloudreg.execution import Engine
from cloudreg.settings import AlignSettings
from cloudreg.stitching.links import neighbours, search_radius_px
from cloudreg.tiles import Acquisition, AxisDisplacement, Displacement, Project, Tile, to_project
from cloudreg.tiles.terastitcher_xml import whole_px

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Array = NDArray[Any]

WIDEST_PX = 29
"""Half widths are looked at up to this many pixels."""

# What the shifted projections must at least have in common along each axis.
_SMALLEST_COMMON_PX = 25
_NARROWEST_WINDOW_PX = 3
_RECENTRINGS = 2
# The width is where the correlation has fallen to this part of the peak.
_WIDTH_LEVEL = 0.8
# So many falling samples are extrapolated.
_FALLING_SAMPLES = 6
_LOWEST_PEAK = 0.10
_SPIKE_PX = 1
# Planes read at once.
_SLAB = 8


@dataclass(frozen=True)
class Projections:
    """Largest values of a stack along each axis.

    Parameters
    ----------
    along
        Three images: along z (rows, columns), along y (planes, columns), along x (planes, rows).
    """

    along: tuple[Array, Array, Array]

    @staticmethod
    def of(slabs: Iterable[Array]) -> Projections:
        """Project a stack that comes in slabs of planes."""
        top: Array | None = None
        by_y, by_x = [], []
        for slab in slabs:
            highest = slab.max(axis=0)
            top = highest if top is None else np.maximum(top, highest)
            by_y.append(slab.max(axis=1))
            by_x.append(slab.max(axis=2))
        if top is None:
            raise ValueError("a stack without planes has no projections")
        return Projections((top, np.concatenate(by_y), np.concatenate(by_x)))


@dataclass(frozen=True)
class Peak:
    """Where a correlation peaks along one axis.

    Parameters
    ----------
    px
        Shift of the second stack against the first.
    height
        Correlation; 0 where there is no peak to believe in.
    width_px
        Half width.
    window_px
        Largest half width that was looked at.
    """

    px: int
    height: float
    width_px: float
    window_px: int


def correlate_projections(first: Projections, second: Projections, search_px: Sequence[int]) -> tuple[Peak, Peak, Peak]:
    """Find the shift between two stacks of the same shape from their projections.

    Parameters
    ----------
    first, second
        Of the stacks.
    search_px
        Largest shift looked at, z y x.

    Returns
    -------
    tuple of Peak
        Along z, y and x.
    """
    infinite = infinite_width_px(search_px)
    found: list[list[Peak]] = [[], [], []]
    for across in range(3):
        axes = [axis for axis in range(3) if axis != across]
        image, other = first.along[across], second.along[across]
        radii = [
            max(0, min(search_px[axis], n - _SMALLEST_COMMON_PX)) for axis, n in zip(axes, image.shape, strict=True)
        ]
        for axis, peak in zip(axes, _find_peaks(image, other, radii, infinite), strict=True):
            found[axis].append(peak)
    z, y, x = (_better(one, two, infinite) for one, two in found)
    return z, y, x


def infinite_width_px(search_px: Sequence[int]) -> float:
    """Return the half width that stands for "no peak"."""
    return 1.0 + max(min(radius, WIDEST_PX) for radius in search_px)


def correlation_of_shifts(first: Array, second: Array, reach: Sequence[int]) -> NDArray[np.float64]:
    """Return the zero-mean normalised cross-correlation of two images at all shifts up to ``reach``.

    Parameters
    ----------
    first, second
        Same shape.
    reach
        Largest shift along each axis, below the image's size.

    Returns
    -------
    ndarray, shape (2 * reach[0] + 1, 2 * reach[1] + 1)
        Of what both images show at each shift of the second; the middle element is the shift 0. 0 where one of them
        is constant there.
    """
    # Taking off the means leaves the result as it is, and keeps the sums exact.
    a, b = first - first.mean(dtype=np.float64), second - second.mean(dtype=np.float64)
    size = [fft.next_fast_len(n + r, real=True) for n, r in zip(a.shape, reach, strict=True)]
    product = fft.irfftn(fft.rfftn(a, size) * np.conj(fft.rfftn(b, size)), size)
    lags = [np.arange(-r, r + 1) for r in reach]
    product = product[np.ix_(*(lag % n for lag, n in zip(lags, size, strict=True)))]
    # At a shift, the first image shows its end and the second its beginning, or the other way round.
    in_a = [(np.maximum(lag, 0), n + np.minimum(lag, 0)) for lag, n in zip(lags, a.shape, strict=True)]
    in_b = [(np.maximum(-lag, 0), n - np.maximum(lag, 0)) for lag, n in zip(lags, a.shape, strict=True)]
    count = np.multiply.outer(*(stop - start for start, stop in in_a)).astype(np.float64)
    sum_a, square_a = _box_sums(a, in_a), _box_sums(a * a, in_a)
    sum_b, square_b = _box_sums(b, in_b), _box_sums(b * b, in_b)
    variance_a, variance_b = square_a - sum_a**2 / count, square_b - sum_b**2 / count
    # What rounding leaves of a variance of zero must not be divided by.
    textured = (variance_a > 1e-9 * max(float((a * a).sum()), 1e-30)) & (
        variance_b > 1e-9 * max(float((b * b).sum()), 1e-30)
    )
    scale = np.sqrt(np.where(textured, variance_a * variance_b, 1))
    return np.where(textured, np.clip((product - sum_a * sum_b / count) / scale, -1, 1), 0)


def measure_displacements(
    acquisition: Acquisition, channel: int, shading: Shading | None, settings: AlignSettings, engine: Engine
) -> Project:
    """Measure all neighbours in all layers, as TeraStitcher's step 2.

    Parameters
    ----------
    acquisition, channel
        What to read.
    shading
        Evens the tiles before they are compared, or None.
    settings
        Search window and thickness of a layer.
    engine
        Runs a pair in a layer at a time; each holds a few planes of two strips and their projections.

    Returns
    -------
    Project
        With a displacement for each layer of each pair that has all its planes, at the nominal positions.
    """
    acquisition.require_channel(channel)
    task = _MeasureLayer(acquisition, channel, shading, search_radius_px(acquisition, settings))
    depth = acquisition.tile_shape[0]
    pairs = neighbours(acquisition.tiles)
    items = [
        _Layer(first, second, start, stop)
        for first, second in pairs
        for start, stop in layers(depth, settings.layer_planes)
        if task.is_whole(first, start, stop) and task.is_whole(second, start, stop)
    ]
    found: dict[tuple[int, int], list[Displacement]] = {pair: [] for pair in pairs}
    for item, displacement in zip(items, engine.run(task, items, label="align", unit="layers"), strict=True):
        if displacement is not None:
            found[item.first, item.second].append(displacement)
    tiles = acquisition.tiles
    return to_project(acquisition, channel).linked(
        {
            (tiles[i].row, tiles[i].column, "south" if tiles[j].row > tiles[i].row else "east"): tuple(displacements)
            for (i, j), displacements in found.items()
        }
    )


def layers(depth: int, planes: int) -> list[tuple[int, int]]:
    """Cut a depth into the fewest layers of at most so many planes, as even as can be; the first are the thicker."""
    count = math.ceil(depth / planes)
    base, more = divmod(depth, count)
    starts = [i * base + min(i, more) for i in range(count + 1)]
    return list(itertools.pairwise(starts))


@dataclass(frozen=True)
class _Layer:
    first: int
    second: int
    start: int
    stop: int


@dataclass(frozen=True)
class _MeasureLayer:
    acquisition: Acquisition
    channel: int
    shading: Shading | None
    search_px: tuple[int, int, int]

    def __call__(self, layer: _Layer) -> Displacement:
        tiles = self.acquisition.tiles
        first, second = tiles[layer.first], tiles[layer.second]
        axis = 1 if second.row > first.row else 2
        side = self.acquisition.tile_shape[axis]
        pitch = self.acquisition.pitch_px[axis - 1]
        # The small number mends quotients such as 899.9999999.
        overlap = math.trunc(side - pitch + 1e-6)
        whole = slice(None)
        ends = slice(side - overlap, side), slice(0, overlap)
        parts = [(end, whole) if axis == 1 else (whole, end) for end in ends]
        one, other = (
            Projections.of(self._slabs(tile, layer, *part)) for tile, part in zip((first, second), parts, strict=True)
        )
        peaks = correlate_projections(one, other, self.search_px)
        infinite = infinite_width_px(self.search_px)
        z, y, x = (
            AxisDisplacement(
                px=float(peak.px + (side - overlap if along == axis else 0)),
                nominal_px=math.trunc(pitch + 1e-6) if along == axis else 0,
                peak=peak.height,
                width_px=peak.width_px,
                largest_width_px=float(peak.window_px),
                infinite_width_px=infinite,
                search_px=radius,
            )
            for along, (peak, radius) in enumerate(zip(peaks, self.search_px, strict=True))
        )
        return Displacement(z, y, x)

    def is_whole(self, tile: int, start: int, stop: int) -> bool:
        """Tell whether a tile has every plane of a layer."""
        return any(
            a <= start and stop <= b for a, b in self.acquisition.planes(self.acquisition.tiles[tile], self.channel)
        )

    def _slabs(self, tile: Tile, layer: _Layer, rows: slice, columns: slice) -> Iterable[Array]:
        for start in range(layer.start, layer.stop, _SLAB):
            slab: Array = self.acquisition.read(
                tile, self.channel, start, min(start + _SLAB, layer.stop), rows, columns
            )
            yield slab if self.shading is None else self.shading.apply(slab, rows, columns)


def _find_peaks(first: Array, second: Array, radii: Sequence[int], infinite: float) -> list[Peak]:
    """Find the peak of two projections within the radii, and its width along both axes."""
    windows = [min(radius, WIDEST_PX) for radius in radii]
    reach = [min(r + (_RECENTRINGS + 1) * w, n - 1) for r, w, n in zip(radii, windows, first.shape, strict=True)]
    values = correlation_of_shifts(first, second, reach)
    peak = _largest(values, reach, radii)
    centred = False
    # A peak at the rim of the search may belong to a higher one outside.
    for _ in range(_RECENTRINGS + 1):
        higher = _largest(values, peak, windows)
        centred = higher == peak
        if centred:
            break
        peak = higher
    height = float(values[peak])
    peaks = []
    for axis, (at, centre, window) in enumerate(zip(peak, reach, windows, strict=True)):
        profile = values[:, peak[1]] if axis == 0 else values[peak[0]]
        sides = profile[at : at + window + 1], profile[max(0, at - window) : at + 1][::-1]
        width = max(_half_width(side, infinite) for side in sides)
        if not centred or window < _NARROWEST_WINDOW_PX or width == _SPIKE_PX:
            width = infinite
        peaks.append(Peak(at - centre, height, min(width, infinite), window))
    return peaks


def _largest(values: Array, centre: Sequence[int], radii: Sequence[int]) -> tuple[int, int]:
    """Index of the largest value within a window, its centre if that is as large."""
    starts = [max(0, c - r) for c, r in zip(centre, radii, strict=True)]
    part = values[tuple(slice(s, c + r + 1) for s, c, r in zip(starts, centre, radii, strict=True))]
    if values[tuple(centre)] >= part.max():
        return centre[0], centre[1]
    row, column = np.unravel_index(int(part.argmax()), part.shape)
    return starts[0] + int(row), starts[1] + int(column)


def _half_width(profile: Array, infinite: float) -> float:
    """Distance at which a profile that begins at its peak has fallen far enough."""
    low = np.flatnonzero(profile <= _WIDTH_LEVEL * profile[0])
    if low.size:
        return float(low[0])
    fall = float(profile[0] - profile[-1])
    if len(profile) >= _FALLING_SAMPLES and fall > 0 and (np.diff(profile) < 0).all():
        return (len(profile) - 1) * (1 - _WIDTH_LEVEL) * float(profile[0]) / fall
    return infinite


def _better(one: Peak, two: Peak, infinite: float) -> Peak:
    """Join what two projections say of the same axis."""
    usable = [peak for peak in (one, two) if peak.height >= _LOWEST_PEAK and peak.width_px < infinite]
    window = max(one.window_px, two.window_px)
    if not usable:
        return Peak(0, 0.0, infinite, window)
    if len(usable) == 2 and abs(one.px - two.px) < min(one.width_px, two.width_px):
        total = one.height + two.height
        return Peak(
            whole_px((one.px * one.height + two.px * two.height) / total),
            (one.height**2 + two.height**2) / total,
            max(one.width_px, two.width_px),
            window,
        )
    return max(usable, key=lambda peak: peak.height / peak.width_px)


def _box_sums(values: Array, ranges: Sequence[tuple[Array, Array]]) -> NDArray[np.float64]:
    """Sums over all boxes made of a range of rows and one of columns."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    (top, bottom), (left, right) = ranges
    by_rows = total[bottom] - total[top]
    return np.asarray(by_rows[:, right] - by_rows[:, left])
