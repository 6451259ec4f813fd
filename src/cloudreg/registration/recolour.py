"""A template in the target's greys, told region by region, for targets of which its own greys tell little.

A Nissl stain shows layers and nuclei that an autofluorescence template shows otherwise or not at all, and no curve from
grey to grey, however local, takes the one to the other. The atlas's labels know where they lie. So when a first fit
says what each region looks like in the target, the template is given those greys, and the fit goes on with that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.levels import Image
from cloudreg.registration.solver import Explanation
from cloudreg.space import split
from cloudreg.transforms import DisplacementField

_TISSUE = 0.15
"""Grey of the template, between background (0) and bright tissue (1), above which a voxel is asked."""

_TOLD, _RIGHT = 0.8, 0.3
"""Templates that tell more than the first have the right greys, and less than the second do not lie on the brain yet:
mice and macaques to a template of their own stain 0.98, two-photon 0.90, human T1 0.88, Nissl 0.73; see `told`."""

_AIR = 0.05
"""Unlabelled places of the template that are darker than this stay black."""

_SURE = 40
"""Volume, in units of length cubed, from which on a region's grey is rather its own than the brain's."""

_ROUNDS, _OUTLIER = 4, 2.5
"""Rounds of reweighting, and standard deviations at which a voxel counts a quarter: it is damage, or lies elsewhere."""

_SOFT = 0.5
"""Standard deviation of the Gaussian that softens the steps between regions, in voxels."""

_NEAR_THE_MEDIAN = 1.4826
"""Standard deviations of a Gaussian in its median deviation."""

_DEGREE = 3
"""Of the curve from grey to grey that all regions share."""

_SLAB_VOXELS = 2**22


def told(target: Image, explanation: Explanation) -> float:
    """Return how much of the target's greys a fit explains: 1 - (median deviation from it / that of the greys)^2.

    Medians don't ask about damage. Where all greys are the same there is nothing to be told, and it is 1.

    Parameters
    ----------
    target
        In the main memory.
    explanation
        Of that target.
    """
    tissue = (explanation.atlas > _TISSUE) & (target.weight > 0)
    grey = target.values[tissue]
    spread = _deviation(grey) if grey.size else 0.0
    return 1 - (_deviation(grey - explanation.predicted[tissue]) / spread) ** 2 if spread > 0 else 1.0


def tells_little(share: float) -> bool:
    """Tell whether what a template tells (see `told`) is less than any did that lay right and had the right greys."""
    return share < _TOLD


def needs_colour(share: float) -> bool:
    """Tell whether a template that tells so much (see `told`) of a target is better given the target's greys."""
    return _RIGHT < share < _TOLD


def _deviation(values: NDArray[np.floating]) -> float:
    return float(np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True)
class Colours:
    """What the regions look like in a target: ``own[0] + own[1] g + shared(g)`` for a template grey ``g``.

    Parameters
    ----------
    shared
        (4,): coefficients of a cubic, of increasing powers.
    own
        (regions, 2).
    """

    shared: NDArray[np.float64]
    own: NDArray[np.float64]

    def of(self, grey: NDArray[np.float32], region: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the target's greys for those of the template and their regions."""
        coefficients = self.shared.astype(np.float32)
        own = self.own.astype(np.float32)
        curve = np.full_like(grey, coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            curve = curve * grey + coefficient
        return np.asarray(curve + own[region, 0] + own[region, 1] * grey)


def colours(
    target: NDArray[np.float32],
    grey: NDArray[np.float32],
    region: NDArray[np.integer],
    weight: NDArray[np.float32],
    *,
    regions: int,
    sure: float,
) -> Colours:
    """Fit `Colours` to voxels that lie on each other.

    A cubic is fitted to all, then to what is left in each region a line, the more weakly the smaller the region. Voxels
    far off that are weighted down by the square of Cauchy's weights (Holland and Welsch, Communications in Statistics
    6:813-827, 1977), and all is fitted again.

    Parameters
    ----------
    target, grey, region, weight
        (n,) each: grey of the target, grey and region of the template there, and how much it counts.
    regions
        How many there are.
    sure
        Weight of a region whose line is half its own.
    """
    powers = np.vander(grey.astype(np.float64), _DEGREE + 1, increasing=True)
    seen, grey_there = target.astype(np.float64), powers[:, 1]
    used = weight.astype(np.float64)
    for _ in range(_ROUNDS):

        def per_region(values: NDArray[np.float64], used: NDArray[np.float64] = used) -> NDArray[np.float64]:
            return np.bincount(region, used * values, minlength=regions).astype(np.float64)

        normal = powers.T @ (powers * used[:, None])
        normal += 1e-9 * np.trace(normal) * np.eye(_DEGREE + 1)
        shared = np.linalg.solve(normal, powers.T @ (used * seen))
        left = seen - powers @ shared
        count = np.bincount(region, used, minlength=regions)
        middle = per_region(grey_there) / np.maximum(count, 1e-9)
        level = per_region(left) / (count + sure)
        off = grey_there - middle[region]
        spread = float(np.sum(used * off**2) / np.sum(used))
        slope = per_region(off * (left - level[region])) / (per_region(off**2) + sure * spread + 1e-12)
        # What is far off for its region, and not because the region is small.
        left -= (level * (count + sure) / np.maximum(count, 1e-9))[region] + slope[region] * off
        noise = _NEAR_THE_MEDIAN * _deviation(left[region > 0] if (region > 0).any() else left)
        used = weight.astype(np.float64) / (1 + (left / max(_OUTLIER * noise, 1e-6)) ** 2) ** 2
    own = np.stack([level - slope * middle, slope], axis=1)
    return Colours(np.asarray(shared, dtype=np.float64), own.astype(np.float64))


def recoloured(
    target: Image,
    template: Image,
    regions: NDArray[np.integer],
    to_atlas: NDArray[np.float64],
    displacement: DisplacementField,
    unit_um: float,
) -> Image:
    """Return the template in the greys that its regions have in the target, as a fit lays them there.

    Parameters
    ----------
    target, template
        Normalised, in the main memory.
    regions
        (z, y, x) on the template's grid: which region a voxel is in, numbered from 1; 0 in none.
    to_atlas
        4 x 4, target um to atlas um.
    displacement
        What is added to that, by place in the atlas.
    unit_um
        The solver's unit of length. Greys are told by voxels about as large.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    small = target.reduced(unit_um)
    # Voxels by slabs: places take six times the room of greys.
    parts = []
    flat_weight, flat_grey = small.weight.ravel(), small.values.ravel()
    for box in split(small.grid.shape, _planes(small.grid.shape)):
        plane = small.grid.shape[1] * small.grid.shape[2]
        voxel = box.start[0] * plane + np.flatnonzero(flat_weight[box.start[0] * plane : box.stop[0] * plane] > 0)
        um = small.grid.index_to_um(np.stack(np.unravel_index(voxel, small.grid.shape), axis=1))
        um = um @ to_atlas[:3, :3].T + to_atlas[:3, 3]
        index = template.grid.um_to_index(um + displacement.displacement(um))
        nearest = np.rint(index).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < template.grid.shape)).all(axis=1)
        voxel, index, nearest = voxel[inside], index[inside], nearest[inside]
        grey = map_coordinates(template.values, index.T, order=1, mode="nearest", output=np.float32)
        region = regions[tuple(nearest.T)]
        brain = (region > 0) | (grey > _AIR)
        parts.append((flat_grey[voxel[brain]], grey[brain], region[brain], flat_weight[voxel[brain]]))
    seen, grey, region, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not seen.size:
        return template
    sure = _SURE * unit_um**3 / small.grid.voxel_volume_um3
    found = colours(seen, grey, region, weight, regions=int(regions.max()) + 1, sure=sure)
    values = np.empty_like(template.values)
    low, high = float(seen.min()), float(seen.max())
    for box in split(template.grid.shape, _planes(template.grid.shape)):
        grey, region = template.values[box.slices], regions[box.slices]
        new = np.clip(found.of(grey, region), low, high)
        values[box.slices] = np.where((region == 0) & (grey < _AIR), np.float32(0), new)
    return Image(gaussian_filter(values, _SOFT), template.weight, template.grid)


def _planes(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of slabs of whole planes."""
    _, ny, nx = shape
    return max(1, _SLAB_VOXELS // (ny * nx)), ny, nx
