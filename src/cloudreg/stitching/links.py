"""How far apart neighbouring tiles really are.

Of each pair of neighbours only the strips that may overlap are read, in a few layers of planes: those with most
texture, until two of them agree. Layers that agree are averaged; pairs without common texture get no vote.

Where tiles drift sideways over their depth, layers differ because the tiles do. Then layers all over the depth are
measured, and all are kept, see `cloudreg.stitching.drift`. A drift blurs the layers that measure it; once it is about
known, they are measured again with their planes moved back, in whole pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.settings import AlignSettings
from cloudreg.stitching.correlation import WINDOW, bandpass
from cloudreg.stitching.layers import agree_closely, combine_layers
from cloudreg.stitching.pairwise import Shift, Strip, measure_shift
from cloudreg.tiles import Acquisition, Drift, Tile

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]

_LAYER_PLANES = 24
_MOST_LAYERS = 4
_MOST_DRIFT_LAYERS = 16
# A link is trusted if two directions are known this well, as standard deviations in pixels.
_KNOWN_PX = 1.0
# Filtered pieces and spectra.
_FIXED_BYTES = 60 * 10**6


@dataclass(frozen=True, eq=False)
class Layer:
    """What one layer of planes says of two neighbours.

    Parameters
    ----------
    plane
        The middle of the layer, in planes of the first tile.
    shift
        Its lag is the position of the second tile minus that of the first there.
    """

    plane: float
    shift: Shift


@dataclass(frozen=True)
class Link:
    """The measured displacement of two neighbours.

    Parameters
    ----------
    first, second
        Indices into the acquisition's ``tiles``; the second lies east or south of the first.
    shift_px
        Position of the second minus that of the first, z y x; the nominal one where nothing was measured.
    nominal_px
        The same by the stage.
    correlation
        Height of the peak, 0..1; nan for an empty overlap.
    information
        (3, 3), inverse covariance of the shift, z y x, 1/px^2: what is known of it in each direction; 0 for an empty
        overlap.
    sharpness
        Curvature over height of the peak per axis, 1/px^2; 0 for an empty overlap.
    layers
        Those in which a shift was found, ascending.
    """

    first: int
    second: int
    shift_px: Triple
    nominal_px: Triple
    correlation: float = math.nan
    information: Matrix = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    sharpness: Triple = (0.0, 0.0, 0.0)
    layers: tuple[Layer, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether the overlap had no texture in common, so that nothing was measured."""
        return math.isnan(self.correlation)


def combined(link: Link, layers: Sequence[Layer]) -> Link:
    """Return a link with the shift that layers have in common; an empty one if they say too little."""
    empty = Link(link.first, link.second, link.nominal_px, link.nominal_px, layers=tuple(layers))
    if not layers:
        return empty
    mean = combine_layers([layer.shift for layer in layers])
    if not is_trusted(mean.information):
        return empty
    return replace(
        empty,
        shift_px=_triple(mean.lag_px),
        correlation=mean.correlation,
        information=_matrix(mean.information),
        sharpness=_triple(mean.sharpness),
    )


def drift_layers(acquisition: Acquisition, settings: AlignSettings) -> int:
    """Return in how many layers tiles are compared when they may drift; 0 if they may not, or are too thin for two."""
    count = acquisition.tile_shape[0] // _thickness(acquisition, search_radius_px(acquisition, settings))
    return min(count, _MOST_DRIFT_LAYERS) if settings.drift == "layers" and count > 1 else 0


def neighbours(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Return the index pairs of tiles and their east and south neighbours, in the order of the tiles."""
    at = {(tile.row, tile.column): index for index, tile in enumerate(tiles)}
    return [
        (index, at[place])
        for index, tile in enumerate(tiles)
        for place in ((tile.row, tile.column + 1), (tile.row + 1, tile.column))
        if place in at
    ]


def search_radius_px(acquisition: Acquisition, settings: AlignSettings) -> tuple[int, int, int]:
    """Return the largest deviation from the nominal displacement that is looked at, z y x."""
    radius = np.ceil(np.asarray(settings.search_um) / acquisition.voxel_size_um - 1e-6).astype(int)
    z, y, x = np.minimum(radius, np.asarray(acquisition.tile_shape) // 2).tolist()
    return z, y, x


def measure_links(
    acquisition: Acquisition, channel: int, shading: Shading | None, settings: AlignSettings, engine: Engine
) -> list[Link]:
    """Measure the displacements of all neighbouring tiles.

    Parameters
    ----------
    acquisition, channel
        What to read.
    shading
        Evens the tiles before they are compared, or None.
    settings
        The search window.
    engine
        Runs the pairs.

    Returns
    -------
    list of Link
        One for each pair of neighbours that were both scanned, empty overlaps included.

    Raises
    ------
    InputError
        If there is no such channel, or the memory of one worker doesn't hold two strips.

    Notes
    -----
    A worker holds two strips of one layer, evened and in smaller copies: about 9 bytes a pixel and 60 MB more. A
    layer is 24 planes thick, or twice the depth that is searched; so the need grows with the tiles' side and overlap,
    and not with their number or depth.
    """
    acquisition.require_channel(channel)
    task = _Measure.of(acquisition, channel, shading, settings)
    pairs = [_Pair.of(acquisition, i, j) for i, j in neighbours(acquisition.tiles)]
    needed = max((task.strip_bytes(pair) for pair in pairs), default=0)
    if needed > engine.memory_per_block_bytes:
        raise InputError(
            f"aligning these tiles needs {needed / 1e9:.2g} GB of memory for each worker, and each has "
            f"{engine.memory_per_block_bytes / 1e9:.2g} GB: give more memory or fewer workers"
        )
    return [link for link in engine.run(task, pairs, label="align", unit="pairs") if link is not None]


def measure_again(
    acquisition: Acquisition,
    channel: int,
    shading: Shading | None,
    settings: AlignSettings,
    engine: Engine,
    links: Sequence[Link],
    drifts: Sequence[Drift],
) -> list[Link]:
    """Return links with those measured anew whose layers are blurred, as a tile drifts within a layer.

    Parameters
    ----------
    acquisition, channel, shading, settings, engine
        As for `measure_links`; as much memory is needed.
    links
        As `measure_links` returned them.
    drifts
        About how the tiles drift, in the acquisition's order.
    """
    task = _Measure.of(acquisition, channel, shading, settings, drifts)
    pairs = {(k.first, k.second): _Pair.of(acquisition, k.first, k.second) for k in links}
    blurred = [pair for pair in pairs.values() if task.is_blurred(pair)]
    fresh = engine.run(task, blurred, label="align again", unit="pairs") if blurred else []
    found = {(link.first, link.second): link for link in fresh if link is not None}
    return [found.get((link.first, link.second), link) for link in links]


@dataclass(frozen=True)
class _Pair:
    first: int
    second: int
    name: str

    @staticmethod
    def of(acquisition: Acquisition, first: int, second: int) -> _Pair:
        return _Pair(first, second, f"{acquisition.tiles[first].name}-{acquisition.tiles[second].name}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Part:
    """The part of a tile that may overlap its neighbour."""

    tile: Tile
    rows: slice
    columns: slice
    drift: Drift | None = None

    def shape(self, planes: int) -> tuple[int, int, int]:
        return planes, self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def drifted(self, planes: Sequence[float] | NDArray[Any], layer: tuple[int, int]) -> NDArray[np.float64]:
        """Return how far the tile has drifted at some planes from the middle of a layer, (n, 2), rows and columns."""
        if self.drift is None:
            return np.zeros((len(planes), 2))
        return self.drift.at(planes) - self.drift.at([(layer[0] + layer[1] - 1) / 2])

    def moves(self, layer: tuple[int, int]) -> NDArray[np.intp]:
        """Return by how many whole pixels each plane of a layer lies beside where its middle does, (planes, 2)."""
        return np.rint(self.drifted(np.arange(*layer), layer)).astype(np.intp)

    def straighten(self, values: NDArray[Any], layer: tuple[int, int]) -> None:
        """Move the planes of a layer to where its middle lies; at the edge what is not known repeats what is."""
        for plane, moved in zip(values, self.moves(layer), strict=True):
            if moved.any():
                rows, columns = (np.clip(np.arange(n) - m, 0, n - 1) for n, m in zip(plane.shape, moved, strict=True))
                plane[:] = plane[np.ix_(rows, columns)]


@dataclass(frozen=True)
class _Measure:
    acquisition: Acquisition
    channel: int
    shading: Shading | None
    search_px: tuple[int, int, int]
    drift_layers: int = 0
    drifts: tuple[Drift, ...] = ()

    @staticmethod
    def of(
        acquisition: Acquisition,
        channel: int,
        shading: Shading | None,
        settings: AlignSettings,
        drifts: Sequence[Drift] = (),
    ) -> _Measure:
        radius, layers = search_radius_px(acquisition, settings), drift_layers(acquisition, settings)
        return _Measure(acquisition, channel, shading, radius, layers, tuple(drifts))

    def __call__(self, pair: _Pair) -> Link:
        nominal = self._nominal(pair)
        empty = Link(pair.first, pair.second, nominal, nominal)
        first, second, lag = self._parts(pair)
        if 0 in first.shape(1):
            return empty
        # The strips start elsewhere than the tiles.
        moved = np.asarray((0, first.rows.start, first.columns.start)) - (0, second.rows.start, second.columns.start)
        found: list[Layer] = []
        for start, stop in self._layers(first, second):
            shift = measure_shift(
                self._read(first, start, stop),
                self._read(second, start, stop),
                lag,
                self.search_px,
                self.acquisition.voxel_size_um,
            )
            if shift is not None:
                # Both strips have the same planes: what they share begins later in one, and ends earlier in the other.
                middle = (start + stop - 1 + shift.lag_px[0]) / 2
                # Of planes that were moved to the layer's middle the lag is that of the middle.
                drifted = second.drifted([middle - shift.lag_px[0]], (start, stop)) - first.drifted(
                    [middle], (start, stop)
                )
                found.append(Layer(middle, replace(shift, lag_px=shift.lag_px + moved + [0.0, *drifted[0]])))
            if not self.drift_layers and len(found) > 1 and agree_closely([layer.shift for layer in found]):
                break
        return combined(empty, found)

    def is_blurred(self, pair: _Pair) -> bool:
        """Whether a plane of a layer lies beside its middle by a pixel, as a tile drifts."""
        first, second, _ = self._parts(pair)
        if 0 in first.shape(1):
            return False
        layers = self._layers(first, second)
        return any(part.moves(layer).any() for part in (first, second) for layer in layers)

    def strip_bytes(self, pair: _Pair) -> int:
        """Most that measuring a pair may hold."""
        first, second, _ = self._parts(pair)
        depth = _thickness(self.acquisition, self.search_px)
        voxels = math.prod(first.shape(depth)) + math.prod(second.shape(depth))
        # As read, evened, and all the smaller copies, filtered too; then filtered pieces and spectra, of fixed size.
        evened = 0 if self.shading is None else 4
        return voxels * (self.acquisition.dtype.itemsize + evened + 3) + _FIXED_BYTES

    def _nominal(self, pair: _Pair) -> Triple:
        a, b = (np.asarray(self.acquisition.nominal_px(self.acquisition.tiles[i])) for i in (pair.first, pair.second))
        return _triple(b - a)

    def _parts(self, pair: _Pair) -> tuple[_Part, _Part, tuple[int, int, int]]:
        """Both strips, and the nominal position of the second in the first."""
        _, height, width = self.acquisition.tile_shape
        nominal = [round(v) for v in self._nominal(pair)]
        # Beyond the search window, the band-pass filter should see what lies around.
        starts, stops = [], []
        for step, radius, side in zip(nominal[1:], self.search_px[1:], (height, width), strict=True):
            margin = radius + WINDOW // 2
            starts.append(min(max(0, step - margin), side) if step > 0 else 0)
            stops.append(max(0, min(side, side - step + margin)) if step > 0 else side)
        tiles, drifts = self.acquisition.tiles, self.drifts or [None] * len(self.acquisition.tiles)
        first = _Part(tiles[pair.first], slice(starts[0], height), slice(starts[1], width), drifts[pair.first])
        second = _Part(tiles[pair.second], slice(0, stops[0]), slice(0, stops[1]), drifts[pair.second])
        return first, second, (nominal[0], nominal[1] - starts[0], nominal[2] - starts[1])

    def _layers(self, first: _Part, second: _Part) -> list[tuple[int, int]]:
        """Return ranges of planes to compare, the most promising first."""
        depth = self.acquisition.tile_shape[0]
        thickness = _thickness(self.acquisition, self.search_px)
        count = self.drift_layers or max(1, depth // thickness)
        edges = [depth * i // count for i in range(count + 1)]
        centres = [(a + b) // 2 for a, b in itertools.pairwise(edges)]
        half = thickness // 2
        layers = [(max(0, c - half), min(depth, max(0, c - half) + thickness)) for c in centres]
        if self.drift_layers or count <= _MOST_LAYERS:
            return layers
        textures = [min(self._texture(first, *layer), self._texture(second, *layer)) for layer in layers]
        return [layers[i] for i in sorted(range(count), key=lambda i: -textures[i])[:_MOST_LAYERS]]

    def _texture(self, part: _Part, start: int, stop: int) -> float:
        """Contrast that is left in the middle plane of a layer when noise and shading are filtered out."""
        observed = np.flatnonzero(self._observed(part, start, stop))
        if not len(observed):
            return 0.0
        plane = start + int(observed[len(observed) // 2])
        values = self._read(part, plane, plane + 1).values
        _, height, width = (n // 4 * 4 for n in values.shape)
        if 0 in (height, width):
            return 0.0
        blocks = values[:, :height, :width].reshape(1, height // 4, 4, width // 4, 4).mean(axis=(2, 4))
        return float(bandpass(blocks).std())

    def _observed(self, part: _Part, start: int, stop: int) -> NDArray[np.bool_]:
        observed = np.zeros(self.acquisition.tile_shape[0], dtype=np.bool_)
        for low, high in self.acquisition.planes(part.tile, self.channel):
            observed[low:high] = True
        return observed[start:stop]

    def _read(self, part: _Part, start: int, stop: int) -> Strip:
        raw: NDArray[Any] = self.acquisition.read(part.tile, self.channel, start, stop, part.rows, part.columns)
        # A plane of zeros was lost too: no camera sees nothing at all.
        observed = self._observed(part, start, stop) & raw.any(axis=(1, 2))
        part.straighten(raw, (start, stop))
        if self.shading is None:
            return Strip(raw, observed)
        values = raw.astype(np.float32)
        flat = self.shading.flat[part.rows, part.columns]
        # The background stays, so that the root in the band-pass filter knows how noisy dark places are.
        values -= self.shading.background
        values /= flat
        values += self.shading.background
        return Strip(values, observed)


def _thickness(acquisition: Acquisition, search_px: tuple[int, int, int]) -> int:
    """Planes in a layer."""
    return min(max(_LAYER_PLANES, 2 * search_px[0]), acquisition.tile_shape[0])


def is_trusted(information: NDArray[np.float64]) -> bool:
    """Whether the shift is known to a pixel in two directions at least: a smooth surface alone shows one, and lies."""
    return float(np.linalg.eigvalsh(information)[1]) >= 1 / _KNOWN_PX**2


def _matrix(values: NDArray[np.float64]) -> Matrix:
    z, y, x = (_triple(row) for row in values)
    return z, y, x


def _triple(values: Sequence[float] | NDArray[Any]) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x
