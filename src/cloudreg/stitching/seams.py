"""How well neighbours agree where they overlap: as the stage placed them, and as they were placed and evened."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.space import Box
from cloudreg.stitching.drift import Drifts, LayerResidual
from cloudreg.stitching.links import neighbours
from cloudreg.stitching.places import TilePlace, shared, tile_places
from cloudreg.tiles import Acquisition, Project, Tile, to_project

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Array = NDArray[Any]

_DEPTHS = 5
_BLOCK = 2
_MOSAIC_PX = 640
_TABLE, _LAYERS, _BEFORE, _AFTER = "seams.csv", "layers.csv", "before.tif", "after.tif"


@dataclass(frozen=True)
class Seam:
    """Two neighbours, compared before and after.

    Parameters
    ----------
    first, second
        Names of the tiles.
    correlation_before, correlation_after
        Of what both show where they overlap, over a few planes; nan where one shows nothing.
    ratio_before, ratio_after
        Median of the second's brightness over the first's, above the background; nan where one shows nothing.
    """

    first: str
    second: str
    correlation_before: float
    correlation_after: float
    ratio_before: float
    ratio_after: float


def measure_seams(
    acquisition: Acquisition, channel: int, shading: Shading | None, project: Project, engine: Engine
) -> list[Seam]:
    """Compare all neighbours, raw at the stage's positions and evened at the project's.

    Parameters
    ----------
    acquisition, channel
        What to read: a few planes of each overlap.
    shading
        Applied after, or None.
    project
        Where the tiles were placed.
    engine
        Runs the pairs; each holds a few planes of two strips.
    """
    before, after = tile_places(acquisition, to_project(acquisition, channel)), tile_places(acquisition, project)
    task = _Compare(acquisition, channel, shading, tuple(before), tuple(after))
    pairs = [_Pair(*pair) for pair in neighbours(acquisition.tiles)]
    return [seam for seam in engine.run(task, pairs, label="seams", unit="pairs") if seam is not None]


def mosaic(
    acquisition: Acquisition, channel: int, shading: Shading | None, places: Sequence[TilePlace]
) -> NDArray[np.float32]:
    """Return a small picture of the middle plane with the tiles laid over each other, unblended: seams are to show.

    Parameters
    ----------
    acquisition, channel, shading
        What to read: one plane a tile.
    places
        Where the tiles lie.
    """
    boxes = [place.box for place in places]
    low, high = np.min([box.start for box in boxes], axis=0), np.max([box.stop for box in boxes], axis=0)
    step = max(1, math.ceil((high - low)[1:].max() / _MOSAIC_PX))
    plane = int(low[0] + high[0]) // 2
    picture = np.zeros(-(-(high - low)[1:] // step), dtype=np.float32)
    for tile, place in zip(acquisition.tiles, places, strict=True):
        box, z = place.at(plane), plane - place.first_plane
        if not any(a <= z < b for a, b in acquisition.planes(tile, channel)):
            continue
        raw: Array = acquisition.read(tile, channel, z, z + 1)
        values = raw.astype(np.float32)[0] if shading is None else shading.apply(raw)[0]
        height, width = (n // step * step for n in values.shape)
        small = values[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
        y, x = ((box.start[i] - low[i]) // step for i in (1, 2))
        target = picture[y : y + small.shape[0], x : x + small.shape[1]]
        target[:] = small[: target.shape[0], : target.shape[1]]
    return picture


def save_seams(
    acquisition: Acquisition,
    channel: int,
    shading: Shading | None,
    project: Project,
    folder: Path,
    engine: Engine,
    *,
    drifts: Drifts | None = None,
) -> None:
    """Measure the seams and write ``seams.csv``, ``before.tif`` and ``after.tif`` into a folder; the table last.

    Where tiles drift, what is left of the links in each layer goes to ``layers.csv``.
    """
    import tifffile

    seams = measure_seams(acquisition, channel, shading, project, engine)
    folder.mkdir(parents=True, exist_ok=True)
    stage = to_project(acquisition, channel)
    for name, flat, where in ((_BEFORE, None, stage), (_AFTER, shading, project)):
        picture = mosaic(acquisition, channel, flat, tile_places(acquisition, where))
        tifffile.imwrite(folder / name, picture, photometric="minisblack", metadata=None)
    # An earlier alignment's, with other settings, says nothing of this one.
    (folder / _LAYERS).unlink(missing_ok=True)
    if drifts is not None:
        _write_table(folder / _LAYERS, LayerResidual, drifts.layers)
    _write_table(folder / _TABLE, Seam, seams)


def _write_table(path: Path, kind: type[Seam] | type[LayerResidual], rows: Sequence[Seam | LayerResidual]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    unfinished.replace(path)


def load_layers(folder: Path) -> list[LayerResidual]:
    """Read what `save_seams` wrote of the layers; none where no drift was found.

    Raises
    ------
    InputError
        If the file does not hold it.
    """
    path = folder / _LAYERS
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [
                LayerResidual(float(r["plane"]), int(r["links"]), float(r["px"]), float(r["straight_px"]))
                for r in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"expected plane, links, px and straight_px in {path}: {error}") from error


def load_seams(folder: Path) -> tuple[list[Seam], NDArray[np.float32], NDArray[np.float32]]:
    """Read what `save_seams` wrote: the seams, and the pictures before and after.

    Raises
    ------
    InputError
        If the folder does not hold it.
    """
    import tifffile

    try:
        with (folder / _TABLE).open(newline="") as file:
            rows = list(csv.DictReader(file))
        seams = [
            Seam(row["first"], row["second"], *(float(row[f.name]) for f in fields(Seam) if f.type == "float"))
            for row in rows
        ]
        before, after = (tifffile.imread(folder / name).astype(np.float32) for name in (_BEFORE, _AFTER))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected seams in {folder} ({_TABLE}, {_BEFORE}, {_AFTER}): {reason}") from error
    return seams, before, after


@dataclass(frozen=True)
class _Pair:
    first: int
    second: int


@dataclass(frozen=True)
class _Compare:
    acquisition: Acquisition
    channel: int
    shading: Shading | None
    before: tuple[TilePlace, ...]
    after: tuple[TilePlace, ...]

    def __call__(self, pair: _Pair) -> Seam:
        """Measure one seam."""
        first, second = (self.acquisition.tiles[i] for i in (pair.first, pair.second))
        found = []
        for places, shading in ((self.before, None), (self.after, self.shading)):
            here, there = places[pair.first], places[pair.second]
            found.append(self._agreement(first, second, here, there, shading))
        (correlation, ratio), (correlation_after, ratio_after) = found
        return Seam(first.name, second.name, correlation, correlation_after, ratio, ratio_after)

    def _agreement(
        self, first: Tile, second: Tile, here: TilePlace, there: TilePlace, shading: Shading | None
    ) -> tuple[float, float]:
        common = here.box.intersection(there.box)
        if not common.size:
            return math.nan, math.nan
        count = common.shape[0]
        planes = sorted({common.start[0] + count * (2 * k + 1) // (2 * _DEPTHS) for k in range(_DEPTHS)})
        parts = []
        for z in planes:
            part = shared(here, there, z)
            a, b = (self._read(tile, place, part, shading) for tile, place in ((first, here), (second, there)))
            if a is not None and b is not None:
                parts.append(np.stack([a.ravel(), b.ravel()]))
        if not parts:
            return math.nan, math.nan
        a, b = np.concatenate(parts, axis=1)
        if a.std() == 0 or b.std() == 0:
            return math.nan, math.nan
        background = 0.0 if self.shading is None or shading is not None else self.shading.background
        a, b = a - background, b - background
        bright = np.sqrt(np.maximum(a, 0) * np.maximum(b, 0))
        tissue = bright > 0.5 * np.percentile(bright, 95)
        ratio = float(np.median(b[tissue] / a[tissue])) if tissue.any() and bright.max() > 0 else math.nan
        return float(np.corrcoef(a, b)[0, 1]), ratio

    def _read(self, tile: Tile, place: TilePlace, part: Box, shading: Shading | None) -> Array | None:
        """Part of a plane, as means over small blocks; None if it is empty or was lost."""
        if not part.size:
            return None
        whole = place.at(part.start[0])
        plane = whole.start[0] - place.first_plane
        if not any(a <= plane < b for a, b in self.acquisition.planes(tile, self.channel)):
            return None
        _, rows, columns = part.shifted([-v for v in whole.start]).slices
        raw: Array = self.acquisition.read(tile, self.channel, plane, plane + 1, rows, columns)
        values = raw.astype(np.float32)[0] if shading is None else shading.apply(raw, rows, columns)[0]
        height, width = (n // _BLOCK * _BLOCK for n in values.shape)
        if 0 in (height, width):
            return None
        return np.asarray(
            values[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean(axis=(1, 3))
        )
