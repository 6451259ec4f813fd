"""How far to trust a registration, region by region.

The atlas is sampled at the resolution of the fit, or at half of the solver's unit if that is coarser. Each sample is
taken to where the map puts it on the target, and asked what the fit found there: was it observed, does it look like the
atlas, how far off is the predicted grey, how much was it swollen.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas, Region, as_ids
from cloudreg.registration.register import Registration
from cloudreg.space import split
from cloudreg.transforms import jacobian_determinant

TRUST = "trust.csv"

LEAST_OBSERVED, LEAST_MATCHED = 0.5, 0.5
"""A region of which less was observed, or of whose observed part less matches, is a guess from its neighbours."""

MOST_SWELLING = 3.0
"""A region that is swollen or shrunk by more than this, on average and beside the affine, has flown to the wrong
place."""

_SLAB_VOXELS = 2**24
"""Voxels of the labels that are read at a time."""

_SIDES = ("left", "right")


@dataclass(frozen=True)
class RegionTrust:
    """One region on one side.

    Parameters
    ----------
    region, side
        Which; side is ``"left"`` or ``"right"``.
    volume_mm3
        On the atlas.
    observed
        Part of it that lies in the target's field and was observed there, 0 to 1. Beyond a cut nothing was.
    matched
        Part of what was observed that looks like the atlas, 0 to 1: the mean posterior of the matching class. NaN
        where nothing was observed.
    residual
        Root mean square of target minus predicted grey where observed; 1 is the brightness of bright tissue. NaN
        where nothing was observed.
    swelling
        Volume on the target over that on the atlas, beside the affine's: geometric mean.
    """

    region: Region
    side: str
    volume_mm3: float
    observed: float
    matched: float
    residual: float
    swelling: float

    @property
    def doubt(self) -> str:
        """What speaks against it, in words; empty where nothing does."""
        if self.observed < LEAST_OBSERVED:
            return f"only {self.observed:.0%} of it was seen"
        if self.matched < LEAST_MATCHED:
            return f"only {self.matched:.0%} of it looks like the atlas"
        if not 1 / MOST_SWELLING < self.swelling < MOST_SWELLING:
            return f"it was scaled to {self.swelling:.2f} of its volume"
        return ""


def region_trust(registration: Registration, atlas: Atlas) -> list[RegionTrust]:
    """Judge every region of the atlas.

    Parameters
    ----------
    registration
        Of that atlas.
    atlas
        With labels; without, there is no region to judge.

    Returns
    -------
    list of RegionTrust
        In the ontology's order, left before right; those with no sample are left out.
    """
    if atlas.labels is None:
        return []
    full = atlas.labels.grid
    apart = max(registration.scales.unit / 2, *registration.target_grid.voxel_size_um)
    factors = [max(1, round(apart / v)) for v in full.voxel_size_um]
    middle = [factor // 2 for factor in factors]
    every = tuple(slice(first, None, factor) for first, factor in zip(middle, factors, strict=True))
    growth = np.log(np.clip(jacobian_determinant(registration.transform.to_target), 1e-3, None))
    ids: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
    sums = np.zeros((0, 2, 5))
    ny, nx = full.shape[1:]
    planes = factors[0] * max(1, _SLAB_VOXELS // (factors[0] * ny * nx))
    for box in split(full.shape, (planes, ny, nx)):
        labels = as_ids(atlas.labels.read(box))[every]
        index = np.argwhere(labels > 0)
        if len(index):
            labels = labels[tuple(index.T)]
            points = full.index_to_um(index * factors + middle + box.start)
            found, row = np.unique(labels, return_inverse=True)
            merged = np.union1d(ids, found)
            grown = np.zeros((merged.size, 2, 5))
            grown[np.searchsorted(merged, ids)] = sums
            ids, sums = merged, grown
            code = 2 * np.searchsorted(ids, found)[row] + (atlas.side(points) == "right")
            for k, value in enumerate(_measures(registration, growth, points)):
                sums[..., k] += np.bincount(code, value, minlength=2 * ids.size).reshape(-1, 2)
    sample_mm3 = full.voxel_volume_um3 * float(np.prod(factors)) * 1e-9
    order = {region_id: place for place, region_id in enumerate(atlas.regions)}
    rows = []
    for n in sorted(range(ids.size), key=lambda n: (order.get(int(ids[n]), len(order)), int(ids[n]))):
        for side, (count, weight, match, squares, swelling) in zip(_SIDES, sums[n], strict=True):
            if count:
                rows.append(
                    RegionTrust(
                        atlas.regions.named(int(ids[n])),
                        side,
                        float(count) * sample_mm3,
                        float(weight / count),
                        float(match / weight) if weight else float("nan"),
                        float(np.sqrt(squares / weight)) if weight else float("nan"),
                        float(np.exp(swelling / count)),
                    )
                )
    return rows


def write_trust_csv(rows: list[RegionTrust], path: str | Path) -> None:
    """Write ``id,acronym,name,side,volume_mm3,observed,matched,residual,swelling,doubt``, whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        figures = ("volume_mm3", "observed", "matched", "residual", "swelling")
        writer.writerow(["id", "acronym", "name", "side", *figures, "doubt"])
        for row in rows:
            values = [f"{getattr(row, name):.6g}" for name in figures]
            writer.writerow([row.region.id, row.region.acronym, row.region.name, row.side, *values, row.doubt])
    unfinished.replace(path)


def read_doubts(folder: str | Path) -> dict[tuple[int, str], str] | None:
    """Return what speaks against each region (id, side) of a registration folder; None where nobody judged."""
    path = Path(folder) / TRUST
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {(int(row["id"]), row["side"]): row["doubt"] for row in csv.DictReader(file)}


def _measures(
    registration: Registration, growth: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return, by sample of the atlas: 1, weight, weight x match, weight x squared residual, log swelling.

    ``growth`` is that of the nodes of the field to the target.
    """
    target, explanation = registration.target, registration.explanation
    there, _ = registration.transform.atlas_to_target(points)
    index = np.rint(registration.target_grid.um_to_index(there))
    inside = np.all((index >= 0) & (index < registration.target_grid.shape), axis=1)
    place = tuple(np.where(inside[:, None], index, 0).astype(np.int64).T)
    weight = np.where(inside, target.weight[place].astype(np.float64), 0.0)
    residual = (target.values[place] - explanation.predicted[place]).astype(np.float64)
    node = np.rint(registration.transform.to_target.grid.um_to_index(points)).astype(np.int64)
    node = np.clip(node, 0, np.array(growth.shape) - 1)
    matched = weight * explanation.match[place]
    return np.ones(len(points)), weight, matched, weight * residual**2, growth[tuple(node.T)]
