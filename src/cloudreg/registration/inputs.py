"""What is registered and where it starts: read, made comparable, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas
from cloudreg.atlas.atlas import slabs
from cloudreg.atlas.ids import distinct
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination import BiasField
from cloudreg.io import Volume, read_resampled
from cloudreg.registration.descent import Scales
from cloudreg.registration.even import even_out
from cloudreg.registration.fit import choose_scales
from cloudreg.registration.levels import Image
from cloudreg.registration.prepare import prepare, sampled
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid, axes_between, proper_orientations
from cloudreg.transforms import Frame, affine_between_middles
from cloudreg.transforms.initial import overlap

Rotations = Sequence[tuple[str, NDArray[np.float64]]]
"""Names, and 3 x 3 from target axes to atlas axes."""

_PREVIEW = 96
"""Voxels along the atlas's longest side when its size is first measured."""

_MOST_EXTENT, _MOST_SIZE = 12.0, 3.0
"""By how much the volumes, and what is in them, may differ in width: half a brain, or one in a head, by less than 2."""

_MOST_WEIGHT = 1.01
"""Weights that were interpolated may be a little more than 1."""

_LEAST_OVERLAP = 0.1
"""Part of the smaller volume that lies in the other one where a fit may start."""


@dataclass(frozen=True)
class Images:
    """What a fit is made of.

    Parameters
    ----------
    targets, templates
        Normalised, one a channel, at the finest resolution of the fit; each template explains each target.
    scales
        The lengths of the fit.
    biases
        The slow illumination that was taken off the targets, by channel, if it was looked for.
    """

    targets: tuple[Image, ...]
    templates: tuple[Image, ...]
    scales: Scales
    biases: dict[int, BiasField]

    @property
    def pairs(self) -> list[tuple[Image, Image]]:
        """Every target with every template."""
        return [(seen, template) for seen in self.targets for template in self.templates]


def read_images(
    target: Volume,
    atlas: Atlas,
    settings: RegistrationSettings,
    *,
    engine: Engine,
    channels: Sequence[int],
    mask: Volume | None = None,
    scales: Scales | None = None,
) -> Images:
    """Read target and template at the resolution of the fit; see `cloudreg.registration.register.register_volume`.

    The lengths of the fit follow the size of what the template shows, if they are not given.

    Raises
    ------
    InputError
        If the voxel sizes can't be of one unit, a volume is a single section, or an image is NaN, constant or empty.
    """
    _require_comparable(target.grid, atlas.template.grid)
    if scales is None:
        template, grid = read_resampled(atlas.template, max(atlas.template.grid.size_um) / _PREVIEW, engine=engine)
        preview = _prepared(template, np.ones_like(template), grid, "template", settings)
        scales = choose_scales(preview, target.grid, atlas.template.grid, settings)
    finest = scales.levels[-1]
    templates = []
    for number in range(atlas.template.channels):
        template, grid = read_resampled(atlas.template, finest, channel=number, engine=engine)
        templates.append(_prepared(template, np.ones_like(template), grid, "template", settings))
    targets, biases = [], {}
    for number in channels:
        values, grid, observed = read_resampled(target, finest, channel=number, engine=engine, weight=True)
        user = None if mask is None else _on_grid(mask, grid, engine)
        even = even_out(values, observed, grid, settings, unit_um=scales.unit, mask=user)
        if even.bias is not None:
            biases[number] = even.bias
        targets.append(_prepared(even.values, observed, grid, "target", settings, user))
    return Images(tuple(targets), tuple(templates), scales, biases)


def start_affine(
    target: Volume, atlas: Atlas, settings: RegistrationSettings, initial_affine: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return the affine to start from where one is given, in whichever way."""
    if initial_affine is not None:
        if settings.moved or settings.scale is not None:
            raise InputError(
                "expected one place to start from, got an initial affine and a rotation, translation or scale: "
                "the affine holds all of these"
            )
        return _proper(initial_affine, settings)
    if not settings.moved:
        return None
    start = affine_between_middles(
        Frame(atlas.template.grid, atlas.orientation),
        Frame(target.grid, target.orientation),
        rotation_deg=settings.rotation_deg or (0.0, 0.0, 0.0),
        translation_um=settings.translation_um or (0.0, 0.0, 0.0),
        scale=settings.scale or (1.0,),
        allow_mirror=settings.allow_mirror,
    )
    common = overlap(start, atlas.template.grid, target.grid)
    if common < _LEAST_OVERLAP:
        raise InputError(
            f"expected a start that brings the atlas to the target, got one that leaves {common:.0%} in common: the "
            "translation is in micrometres, along the target's axes z y x"
        )
    return start


def _proper(affine: NDArray[np.float64], settings: RegistrationSettings) -> NDArray[np.float64]:
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(f"expected an affine to start from, 4 x 4 and invertible, got {affine.tolist()}")
    if np.linalg.det(affine[:3, :3]) < 0 and not settings.allow_mirror:
        raise InputError(
            "expected an affine to start from that keeps left and right, got one that mirrors: check the signs of its "
            "axes (RAS or LPS), or set registration.allow_mirror: true"
        )
    return affine


def given_scales(start: NDArray[np.float64] | None, settings: RegistrationSettings) -> NDArray[np.float64]:
    """Return what is known of the atlas's scales before the fit: 3 x 3, atlas um to target um up to a turn."""
    if start is not None:
        return start[:3, :3]
    return np.diag(np.broadcast_to(np.asarray(settings.scale or 1.0, dtype=np.float64), 3))


def require_like_size(target: Image, template: Image) -> None:
    """Refuse brains of which one is several times as large as the other."""
    volumes = [float(i.foreground.sum()) * i.grid.voxel_volume_um3 for i in (target, template)]
    if min(volumes) == 0:
        return
    ratio = (volumes[0] / volumes[1]) ** (1 / 3)
    if not 1 / _MOST_SIZE < ratio < _MOST_SIZE:
        raise InputError(
            f"the target's tissue is {ratio:.2g} times as wide as the atlas's: check both voxel sizes (micrometres), "
            "or give --scale if that is so"
        )


def rotations_for(target: Volume, atlas: Atlas, settings: RegistrationSettings) -> Rotations:
    """Return the rotations from target axes to atlas axes to start from."""
    mirror = settings.allow_mirror
    if target.orientation is not None:
        letters = [target.orientation]
    else:
        letters = proper_orientations(atlas.orientation)
    return [(name, axes_between(name, atlas.orientation, allow_mirror=mirror)) for name in letters]


def numbered_regions(atlas: Atlas, grid: Grid) -> NDArray[np.int32]:
    """Return which region each voxel of a grid is in, numbered from 1 in the order of their ids, and 0 in none."""
    ids = np.empty(grid.shape, dtype=np.uint64)
    for box in slabs(grid):
        index = np.stack(np.unravel_index(np.arange(box.size), box.shape), axis=1) + box.start
        ids[box.slices] = atlas.labels_at(grid.index_to_um(index)).reshape(box.shape)
    known = distinct(ids)
    known = known[known > 0]
    return np.where(ids > 0, np.searchsorted(known, ids) + 1, 0).astype(np.int32)


def _require_comparable(target: Grid, template: Grid) -> None:
    """Refuse what is no volume, and voxel sizes in other units, before anything is read."""
    for name, grid in (("target", target), ("template", template)):
        if grid.thin_axes:
            raise InputError(
                f"expected volumes, got a {name} that is one voxel thick along {' and '.join(grid.thin_axes)}: a "
                "single section can't be registered"
            )
    sizes = [float(np.prod(grid.size_um)) ** (1 / 3) / 1000 for grid in (target, template)]
    if not 1 / _MOST_EXTENT < sizes[0] / sizes[1] < _MOST_EXTENT:
        raise InputError(
            f"the target's volume is {sizes[0]:.3g} mm wide and the template's {sizes[1]:.3g} mm: check both voxel "
            "sizes, which are in micrometres"
        )


def _prepared(
    values: NDArray[np.float32],
    observed: NDArray[np.float32],
    grid: Grid,
    name: str,
    settings: RegistrationSettings,
    mask: NDArray[np.float32] | None = None,
) -> Image:
    missing = settings.missing_data and name == "target"
    return prepare(values, observed, grid, name=name, missing_data=missing, mask=mask)


def _on_grid(mask: Volume, grid: Grid, engine: Engine) -> NDArray[np.float32]:
    """Sample a mask at the target's voxels: weights as they are, of other numbers how many are not 0."""
    values, own, other = read_resampled(mask, max(grid.voxel_size_um), engine=engine, weight=True)
    if not np.isfinite(values).all():
        raise InputError("the mask holds values that are no numbers (NaN or infinite): weights are from 0 to 1")
    weights = mask.dtype.kind == "f" and values.max() < _MOST_WEIGHT
    step = np.linalg.inv(own.affine) @ grid.affine
    return np.clip(sampled(values if weights else other, step, grid.shape), 0, 1)
