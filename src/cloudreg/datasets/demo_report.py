"""How far a result is from the truth of a demo acquisition."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.datasets.sample import thinned
from cloudreg.datasets.structures import ONTOLOGY
from cloudreg.datasets.truth import DemoTruth
from cloudreg.errors import InputError
from cloudreg.space import Box, Grid

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading
    from cloudreg.io import Volume
    from cloudreg.transforms import Transform

_POINTS = 20_000
_DICE_VOXELS = 6_000_000
_SLAB = 16

Row = tuple[str, str, float]
"""What, unit, value."""


@dataclass(frozen=True)
class DemoScore:
    """Errors of a result; see `score_demo`.

    Parameters
    ----------
    shading_percent
        Per channel: root mean square over the tile of estimated / true flat field - 1, both with mean 1.
    tile_px
        (n,): distance of each tile from its true position.
    registration_um
        (n,): distance, in the atlas, between estimated and true place of points in tissue.
    dice
        By acronym: overlap of estimated and true region.
    intensity_percent
        Per channel: (n,) deviation of each region's mean from the true one, after one common scale.
    """

    shading_percent: Mapping[int, float]
    tile_px: NDArray[np.float64]
    registration_um: NDArray[np.float64]
    dice: Mapping[str, float]
    intensity_percent: Mapping[int, NDArray[np.float64]]

    def rows(self) -> list[Row]:
        """Return the figures to print."""
        dice = np.array(list(self.dice.values()))
        return [
            *((f"shading error, channel {c}", "% rms", v) for c, v in self.shading_percent.items()),
            ("tile position error, median", "px", float(np.median(self.tile_px))),
            ("tile position error, max", "px", float(self.tile_px.max())),
            ("registration error, median", "um", float(np.median(self.registration_um))),
            ("registration error, 90th percentile", "um", float(np.percentile(self.registration_um, 90))),
            (f"Dice, mean of {len(dice)} regions", "", float(dice.mean())),
            ("Dice, median", "", float(np.median(dice))),
            ("Dice, lowest", "", float(dice.min())),
            *(
                (f"region intensity error, channel {c}, median", "%", float(np.median(v)))
                for c, v in self.intensity_percent.items()
            ),
        ]

    def region_rows(self) -> list[Row]:
        """Return the Dice of each region, lowest first."""
        return [
            (f"Dice {acronym}", "", value) for acronym, value in sorted(self.dice.items(), key=lambda item: item[1])
        ]


def score_demo(
    truth: DemoTruth,
    *,
    shadings: Mapping[int, Shading],
    positions_px: ArrayLike,
    transform: Transform,
    labels: Volume,
    regions_csv: str | Path,
) -> DemoScore:
    """Compare a result with the truth.

    Parameters
    ----------
    truth
        Of the acquisition.
    shadings
        By channel; the channels of the region table are these, in ascending order.
    positions_px
        (n, 3): found position of each scanned tile, row by row, in voxels of the stage's frame, z y x.
    transform
        Between the atlas and the fused volume.
    labels
        The atlas's labels on the grid of the fused volume.
    regions_csv
        The region table.

    Notes
    -----
    Nothing in the tiles tells where all of them lie together, so the mean difference between found and true positions
    is taken off, from the tiles and from the fused volume alike.
    """
    found = np.asarray(positions_px, dtype=np.float64)
    if found.shape != truth.positions_px.shape:
        raise InputError(f"expected positions of {len(truth.positions_px)} tiles, (n, 3), got {found.shape}")
    difference = found - truth.positions_px
    shift_px = difference.mean(axis=0)
    shift_um = shift_px * truth.field.voxel_size_um
    return DemoScore(
        shading_percent={c: _shading_error(s.flat, truth.flats[c]) for c, s in sorted(shadings.items())},
        tile_px=np.linalg.norm(difference - shift_px, axis=1),
        registration_um=_registration_error(truth, transform, shift_um),
        dice=_dice(truth, labels, shift_um),
        intensity_percent=_intensity_error(truth, Path(regions_csv), sorted(shadings)),
    )


def _shading_error(flat: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    ratio = (flat / flat.mean()) / (true / true.mean())
    return float(100 * np.sqrt(np.mean((ratio - 1) ** 2)))


def _registration_error(truth: DemoTruth, transform: Transform, shift_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors at random points of scanned tissue."""
    generator = np.random.default_rng([truth.seed, 6])
    low, high = truth.sample.phantom.grid.bounds_um()
    atlas_points = generator.uniform(low, high, size=(8 * _POINTS, 3))
    atlas_points = atlas_points[truth.sample.phantom.ids_at(atlas_points) > 0]
    points = truth.sample.map.atlas_to_target(atlas_points)
    seen = np.flatnonzero(truth.covered(points))[:_POINTS]
    found, _ = transform.target_to_atlas(points[seen] + shift_um)
    return np.asarray(np.linalg.norm(found - atlas_points[seen], axis=1))


def _dice(truth: DemoTruth, labels: Volume, shift_um: NDArray[np.float64]) -> dict[str, float]:
    """Overlap of each region, on every voxel or, of a large volume, on every second or third."""
    stride = max(1, round((np.prod(labels.grid.shape) / _DICE_VOXELS) ** (1 / 3)))
    grid = thinned(labels.grid, (stride, stride, stride))
    shifted = grid.affine.copy()
    shifted[:3, 3] -= shift_um
    true, _ = truth.sample.labels_on(Grid(grid.shape, shifted))
    names = {number: acronym for number, acronym, _, _ in ONTOLOGY}
    ids = np.unique(truth.regions.ids)
    both, either = np.zeros(len(ids)), np.zeros(len(ids))
    depth, height, width = labels.grid.shape
    for start in range(0, grid.shape[0], _SLAB):
        part = true[start : start + _SLAB]
        box = Box((start * stride, 0, 0), (min(depth, (start + _SLAB) * stride), height, width))
        found = labels.read(box)[::stride, ::stride, ::stride].astype(np.int64)
        for array in (part, found):
            index, known = _index_of(array, ids)
            either += np.bincount(index[known], minlength=len(ids))
        index, known = _index_of(part, ids)
        both += np.bincount(index[known & (part == found)], minlength=len(ids))
    return {names[int(i)]: float(2 * b / e) for i, b, e in zip(ids, both, either, strict=True) if e}


def _index_of(array: NDArray[np.integer], ids: NDArray[np.uint32]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Place of each id in the ascending list ``ids``, and whether it is there."""
    index = np.minimum(np.searchsorted(ids, array), len(ids) - 1)
    return index, ids[index] == array


def _intensity_error(truth: DemoTruth, path: Path, channels: list[int]) -> dict[int, NDArray[np.float64]]:
    """Deviation of the table's means from the true ones, up to one scale per channel."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in (rows[0] if rows else {}) if re.match("mean_", name)]
    if len(columns) != len(channels):
        raise InputError(f"expected a mean intensity for {len(channels)} channels in {path}, found {columns}")
    table = {(int(row["id"]), row["side"]): [float(row[name]) for name in columns] for row in rows}
    true = truth.regions
    sides = np.where(true.right, "right", "left")
    errors = {}
    for place, channel in enumerate(channels):
        found = np.array(
            [table.get((int(i), str(s)), [np.nan] * len(columns))[place] for i, s in zip(true.ids, sides, strict=True)]
        )
        ratio = (found / true.grey[:, channel])[np.isfinite(found)]
        errors[channel] = np.asarray(100 * np.abs(ratio / np.median(ratio) - 1))
    return errors
