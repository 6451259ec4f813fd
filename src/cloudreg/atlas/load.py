"""Finding and opening an atlas, and checking that its parts fit together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas.atlas import Atlas, slabs
from cloudreg.atlas.brainglobe import brainglobe_folder
from cloudreg.atlas.ids import as_ids, distinct
from cloudreg.atlas.ontology import Regions, load_regions
from cloudreg.errors import InputError
from cloudreg.io import Volume, open_volume, write_volume
from cloudreg.space import Grid, parse_orientation

_DESCRIPTION = "atlas.json"
_BRAINGLOBE_DESCRIPTION = "metadata.json"
Shared = Literal["corner", "centre"]

_VoxelSize = Sequence[float] | None
_WITH_ORIGIN = {"nrrd", "nifti"}
"""Formats whose headers say where the first voxel's centre lies, even where that is 0."""


def load_atlas(
    name: str | None = None,
    *,
    template: str | Path | None = None,
    labels: str | Path | None = None,
    ontology: str | Path | None = None,
    orientation: str | None = None,
    voxel_size_um: Sequence[float] | None = None,
    labels_share: Shared | None = None,
) -> Atlas:
    """Open an atlas by name, folder or files.

    Parameters
    ----------
    name
        A BrainGlobe atlas (downloaded at its first use), or a folder that `save_atlas` wrote or BrainGlobe
        downloaded. Exclusive with ``template``.
    template, labels, ontology
        Files of an atlas of one's own; without ``ontology`` a region is called by its id.
    orientation, voxel_size_um
        Of the template's file, z y x. Given, they override its header, and the labels' header too: both files then
        begin at the same place. The labels may have another voxel size.
    labels_share
        What labels without a frame of their own have in common with the template: the outer ``"corner"`` of the
        first voxel, as volumes that were averaged down from one another have, or its ``"centre"``, as volumes that
        were thinned out have. By default the files are believed: NRRD and NIfTI headers place the first voxel's
        centre (the Allen Institute's NRRD files of 50 um and more were indeed thinned out), and files without a
        header cover the template.

    Returns
    -------
    Atlas

    Raises
    ------
    InputError
        If there is no such atlas; if a volume is constant, not finite or not readable; if labels are no whole
        numbers, reach more than a template voxel out of the template, or, without a frame of their own, don't cover
        it.
    """
    if (name is None) == (template is None):
        raise InputError("an atlas is either a name or a template file: give --atlas, or --template with --labels")
    source = {
        "name": name and _absolute(name),
        "template": template and _absolute(template),
        "labels": labels and _absolute(labels),
        "ontology": ontology and _absolute(ontology),
        "orientation": orientation,
        "voxel_size_um": voxel_size_um and [float(v) for v in voxel_size_um],
        "labels_share": labels_share,
    }
    if name is not None:
        folder = Path(name).expanduser()
        atlas = _from_folder(folder if folder.is_dir() else brainglobe_folder(name), orientation)
        return replace(atlas, source=source)
    path = Path(str(template))
    opened = open_volume(str(template), voxel_size_um=voxel_size_um, orientation=orientation, kind="image")
    label_volume = None if labels is None else _open_labels(labels, opened, voxel_size_um, orientation, labels_share)
    regions = None if ontology is None else load_regions(ontology)
    atlas = _checked(path.name.split(".")[0], opened, label_volume, orientation, regions)
    return replace(atlas, source=source)


def save_atlas(
    folder: str | Path,
    *,
    name: str,
    template: NDArray[Any],
    labels: NDArray[Any],
    grid: Grid,
    orientation: str,
    regions: Regions,
    labels_grid: Grid | None = None,
) -> Atlas:
    """Write an atlas as a folder that `load_atlas` takes for a name.

    Parameters
    ----------
    folder
        New, or left unfinished by an earlier call.
    name
        What it is called in reports.
    template, labels
        Arrays (z, y, x); labels of an integer type.
    grid, orientation
        Where the template lies, and the letters of the physical axes z, y, x.
    regions
        Names of the ids.
    labels_grid
        Where the labels lie, if not on ``grid``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    letters = parse_orientation(orientation)
    write_volume(str(folder / "template.ome.zarr"), template, grid, orientation=letters)
    write_volume(str(folder / "labels.ome.zarr"), labels, labels_grid or grid, kind="labels", orientation=letters)
    regions.write_csv(folder / "regions.csv")
    description = {"name": name, "orientation": letters, "resolution_um": list(grid.voxel_size_um)}
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return load_atlas(str(folder))


def label_ids(labels: Volume) -> list[int]:
    """Return the ids that occur in a label volume, 0 left out, reading it slab by slab."""
    found: set[int] = set()
    for box in slabs(labels.grid):
        found.update(int(i) for i in distinct(as_ids(labels.read(box), labels.path)))
    return sorted(found - {0})


def _absolute(path: str | Path) -> str:
    """Return the place of a local file whatever the working folder; a name or an address stays as it is."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else str(path)


def _from_folder(folder: Path, orientation: str | None) -> Atlas:
    is_brainglobe = not (folder / _DESCRIPTION).exists() and (folder / _BRAINGLOBE_DESCRIPTION).exists()
    path = folder / (_BRAINGLOBE_DESCRIPTION if is_brainglobe else _DESCRIPTION)
    try:
        about = json.loads(path.read_text())
        resolution = [float(v) for v in about["resolution" if is_brainglobe else "resolution_um"]]
        letters = parse_orientation(orientation or about["orientation"])
    except FileNotFoundError:
        raise InputError(
            f"expected {_DESCRIPTION} (or BrainGlobe's {_BRAINGLOBE_DESCRIPTION}) in the atlas folder {folder}, "
            "found neither: give a BrainGlobe name, such a folder, or --template and --labels"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not describe an atlas (name, orientation, resolution): {error!r}") from error
    if is_brainglobe:
        template_path, labels_path = folder / "reference.tiff", folder / "annotation.tiff"
        ontology = folder / "structures.json"
    else:
        template_path, labels_path = _one(folder, "template"), _one(folder, "labels")
        ontology = folder / "regions.csv"
    if template_path.name.endswith(".zarr") and orientation is None:
        template = open_volume(str(template_path), kind="image")
    else:
        template = open_volume(str(template_path), voxel_size_um=resolution, orientation=letters, kind="image")
    same_frame = letters if not template.has_own_frame else None
    labels = _open_labels(labels_path, template, resolution, same_frame, "corner")
    return _checked(str(about.get("name", folder.name)), template, labels, letters, load_regions(ontology))


def _one(folder: Path, stem: str) -> Path:
    found = sorted(p for p in folder.iterdir() if p.name.split(".")[0] == stem)
    if len(found) != 1:
        raise InputError(f"expected one volume named {stem}.* in the atlas folder {folder}, found {len(found)}")
    return found[0]


def _open_labels(
    path: str | Path, template: Volume, voxel_size_um: _VoxelSize, orientation: str | None, shared: Shared | None
) -> Volume:
    """Open labels, and place them by the template where they have no frame of their own."""
    try:
        labels = open_volume(str(path), orientation=orientation, kind="labels")
    except InputError:
        # A file that says no voxel size covers the template, so its shape gives the size. One with another fault
        # says so again when it is opened again.
        shape = open_volume(str(path), voxel_size_um=(1.0, 1.0, 1.0), orientation=orientation, kind="labels").grid.shape
        if not _in_proportion(shape, template.grid.shape):
            raise _elsewhere(path, template, shape, "without a voxel size") from None
        size = [float(v) for v in template.grid.size_um / np.asarray(shape)]
        labels = open_volume(str(path), voxel_size_um=size, orientation=orientation, kind="labels")
    if voxel_size_um is not None and labels.grid.shape == template.grid.shape:
        # The template's header was overruled, and that of labels on the same grid is no better.
        labels = open_volume(str(path), voxel_size_um=voxel_size_um, orientation=orientation, kind="labels")
    if labels.has_own_frame:
        return labels
    _require_covering(labels, template)
    if shared is None:
        have_headers = {labels.format, template.format} <= _WITH_ORIGIN
        shared = "centre" if have_headers else "corner"
    return _placed_by(labels, template.grid, shared)


def _in_proportion(shape: Sequence[int], template: Sequence[int]) -> bool:
    """Tell whether shapes are alike but for one factor, up to a voxel that rounding takes or gives."""
    few, many = np.asarray(shape), np.asarray(template)
    factors = many / few
    voxel = max(1.0, float(np.median(factors)))
    return bool(((many - voxel) / few).max() <= ((many + voxel) / few).min())


def _require_covering(labels: Volume, template: Volume) -> None:
    """Refuse labels that don't say where they lie and are those of a part of the template only, wherever that is."""
    slack = np.maximum(labels.grid.voxel_size_um, template.grid.voxel_size_um)
    if (labels.grid.size_um < template.grid.size_um - slack * (1 + 1e-6)).any():
        size = " x ".join(f"{v:g}" for v in labels.grid.voxel_size_um)
        raise _elsewhere(labels.path, template, labels.grid.shape, f"of {size} um")


def _elsewhere(path: str | Path, template: Volume, shape: Sequence[int], voxels: str) -> InputError:
    return InputError(
        f"expected labels all over the template {template.path} of shape {template.grid.shape}, got shape "
        f"{tuple(shape)} {voxels} at {path}, which doesn't say where it lies: give the labels of that template"
    )


def _placed_by(labels: Volume, template: Grid, shared: Shared) -> Volume:
    """Put the corner or centre of the labels' first voxel where the template's is; axes as the template."""
    ratio = np.asarray(labels.grid.voxel_size_um) / np.asarray(template.voxel_size_um)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2 if shared == "corner" else 0
    return labels.placed(template.affine @ step)


def _checked(
    name: str, template: Volume, labels: Volume | None, orientation: str | None, regions: Regions | None
) -> Atlas:
    letters = orientation or template.orientation
    if letters is None:
        raise InputError(
            f"the template {template.path} does not say which way it lies: give --atlas-orientation, "
            "such as asr (the side where each array axis starts)"
        )
    _check_template(template)
    if labels is not None:
        _check_inside(labels, template)
        _check_ids(labels)
    if regions is None:
        regions = Regions.from_ids([] if labels is None else label_ids(labels))
    return Atlas(name, template, labels, parse_orientation(letters), regions)


def _check_template(template: Volume) -> None:
    low, high = np.inf, -np.inf
    for box in slabs(template.grid):
        values = template.read(box)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(f"the template {template.path} holds NaN or infinite values: give one without")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if high > low and values.dtype.kind != "f":
            return
    if not high > low:
        raise InputError(f"the template {template.path} is constant ({low:g} everywhere): nothing can be aligned to it")


def _check_inside(labels: Volume, template: Volume) -> None:
    low, high = template.grid.bounds_um()
    label_low, label_high = labels.grid.bounds_um()
    slack = np.abs(template.grid.affine[:3, :3]).max(axis=1) * (1 + 1e-6)
    if (label_low < low - slack).any() or (label_high > high + slack).any():
        raise InputError(
            f"the labels {labels.path} span {_span(label_low, label_high)} um and the template {template.path} "
            f"{_span(low, high)} um (z, y, x): labels must lie inside the template; check the voxel sizes, or give "
            "--atlas-orientation if the headers are wrong"
        )


def _span(low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
    return ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))


def _check_ids(labels: Volume) -> None:
    """Unsigned integers need no look; other types are read once."""
    if labels.dtype.kind == "u":
        return
    for box in slabs(labels.grid):
        as_ids(labels.read(box), labels.path)
