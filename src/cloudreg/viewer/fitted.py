"""The sections of a report that show a registration: overlays, deformation, energy, weights, regions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io import Volume, open_volume
from cloudreg.transforms import Transform, jacobian_determinant
from cloudreg.viewer.charts import lines
from cloudreg.viewer.page import Fact, Part, Section
from cloudreg.viewer.pictures import (
    AXES,
    SmallVolume,
    coloured,
    encode,
    grey,
    label_plane,
    middle_planes,
    outlines,
    place,
    plane,
    shrink,
    square_plane,
    with_scale_bar,
)

_PLANES = 4


def registration_facts(folder: Path) -> list[Fact]:
    """Return the registration's numbers for the top of the page; none where there is no registration."""
    if not (folder / "manifest.json").exists():
        return []
    manifest = json.loads((folder / "manifest.json").read_text())
    figures = manifest["figures"]
    return [
        Fact("atlas", str(manifest["atlas"]["name"])),
        Fact("of the brain matches it", f"{figures['matched_fraction']:.0%}"),
        Fact("doubts", str(len(figures.get("doubts", [])) or "none")),
        Fact("local volume change", f"{figures['jacobian_min']:.2f} to {figures['jacobian_max']:.2f} ×"),
    ]


def registration_sections(folder: Path, regions: Path) -> list[Section]:
    """Return the sections of a registration folder and of its region table."""
    from cloudreg.registration import open_registration

    registration = open_registration(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    target = shrink(registration.open_target(), channel=int(manifest["target"]["channel"]))
    # Folders of the first version have none.
    doubts = "".join(f"Beware: {doubt}. " for doubt in manifest["figures"].get("doubts", []))
    if manifest["figures"].get("recoloured"):
        doubts += (
            "The template's greys tell little of the sample's, so the regions were given the greys that they have "
            "in the sample: that a region matches says less here, and the energy begins to fall anew each time. "
        )
    if manifest["figures"].get("prior_softened", 1) > 1:
        doubts += (
            "A softer map foretold more of the sample, so the last steps were taken with a weaker prior: folds are "
            "followed more closely, the map is rougher, and the energy falls anew. "
        )
    parts = [*_overlays(folder, target), *_in_atlas(folder)]
    sections = [
        Section(
            "registration",
            "Registration",
            "Where the atlas's regions came to lie on the sample. Outlines should follow the borders that you see in "
            "the tissue: ventricles, tracts, layers of cortex, and the outer surface. Point at a picture to see it "
            "without them.",
            parts,
        ),
        Section(
            "trust",
            "How far to trust it",
            f"{doubts}The deformation should be smooth and nowhere fold, the energy should have settled, and what "
            "the fit set aside as artifact should be what you would set aside.",
            [
                *_doubted_regions(folder),
                *_deformation(registration.transform),
                *_energy(folder),
                *_weights(folder),
                *_figures(manifest),
            ],
        ),
    ]
    if regions.exists():
        sections.append(_region_section(regions))
    return sections


def _overlays(folder: Path, target: SmallVolume) -> list[Part]:
    path = folder / "labels_in_target.ome.zarr"
    labels = open_volume(str(path)) if path.exists() else None
    window = target.window()
    parts = []
    for axis in range(3):
        pictures = []
        for index in _shown_planes(target, labels, axis):
            values, pixel_um = square_plane(plane(target.array, axis, index), target.grid, axis, smooth=True)
            overlay = ""
            if labels is not None:
                ids, _ = square_plane(label_plane(labels, target.grid, axis, index), target.grid, axis, smooth=False)
                overlay = outlines(ids)
            picture, bar = with_scale_bar(grey(values, window), pixel_um)
            pictures.append(encode(picture, f"{place(target.grid, axis, index)}; bar {bar}", overlay=overlay))
        parts.append(Part("pictures", title=f"Planes across {AXES[axis]}", pictures=pictures))
    return parts


def _shown_planes(target: SmallVolume, labels: Volume | None, axis: int) -> list[int]:
    """Spread planes evenly over the part of the axis that holds the brain."""
    first, last = 0, target.array.shape[axis] - 1
    across = tuple(a for a in range(3) if a != axis)
    if labels is not None:
        coarse = labels.read(level=len(labels.levels) - 1)
        held = np.flatnonzero((coarse != 0).any(axis=across))
        if held.size:
            scale = target.array.shape[axis] / coarse.shape[axis]
            first, last = int(held[0] * scale), min(last, int((held[-1] + 1) * scale))
    return sorted({int(first + (last - first) * (k + 1) / (_PLANES + 1)) for k in range(_PLANES)})


def _in_atlas(folder: Path) -> list[Part]:
    from cloudreg.registration import open_registration

    path = folder / "target_in_atlas.ome.zarr"
    if not path.exists():
        return []
    carried = shrink(open_volume(str(path)))
    try:
        template = shrink(open_registration(folder).open_atlas().template)
    except InputError:
        # The atlas may be gone, or offline; the sample in its space still says something.
        template = None
    parts: list[Part] = []
    for volume, name in ((carried, "sample"), (template, "template")):
        if volume is not None:
            title = "" if parts else "The sample in the atlas's space, and the template"
            parts.append(Part("pictures", title=title, pictures=middle_planes(volume, volume.window(), name)))
    return parts


def _doubted_regions(folder: Path) -> list[Part]:
    path = folder / "trust.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    doubted = [row for row in rows if row["doubt"]]
    volume = sum(float(row["volume_mm3"]) for row in rows) or 1.0
    part = sum(float(row["volume_mm3"]) for row in doubted) / volume
    if not doubted:
        return [Part("table", title="Regions not to be trusted", rows=[("region", "why"), ("none", "")])]
    shown = ("acronym", "name", "side", "observed", "matched", "residual", "swelling")
    table = [[*shown, "why"], *([*(_short(row[name]) for name in shown), row["doubt"]] for row in doubted)]
    title = f"Regions not to be trusted: {len(doubted)} of {len(rows)}, {part:.1%} of the atlas's volume"
    return [Part("sortable", title=title, rows=table)]


def _deformation(transform: Transform) -> list[Part]:
    field = transform.to_target
    determinant = jacobian_determinant(field)
    length = np.sqrt((field.vectors.astype(np.float64) ** 2).sum(axis=0))
    folded = int((determinant <= 0).sum())
    change, moved = [], []
    reach = max(0.25, float(np.percentile(np.abs(np.log2(np.clip(determinant, 1e-3, None))), 99.5)))
    for axis in range(3):
        index = determinant.shape[axis] // 2
        where = place(field.grid, axis, index)
        values, _ = square_plane(plane(determinant, axis, index), field.grid, axis, smooth=True)
        picture = coloured(np.log2(np.clip(values, 1e-3, None)), "RdBu_r", -reach, reach)
        change.append(encode(picture, f"volume change, blue {2**-reach:.2f} × to red {2**reach:.2f} ×, {where}"))
        values, _ = square_plane(plane(length, axis, index), field.grid, axis, smooth=True)
        picture = coloured(values, "magma", 0, float(length.max()))
        moved.append(encode(picture, f"displacement after the affine, 0 to {length.max():.0f} µm, {where}"))
    text = "nowhere folded" if folded == 0 else f"folded at {folded} of {determinant.size} nodes"
    return [Part("pictures", title=f"Deformation: {text}", pictures=change), Part("pictures", pictures=moved)]


def _energy(folder: Path) -> list[Part]:
    path = folder / "energies.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return []
    levels: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        points = levels.setdefault(f"{float(row['level_um']):.4g} µm, {row['step']}", [])
        points.append((len(points), float(row["gained"])))
    # Levels differ in voxel count, so gains compare within a level only. The energy itself would jump from step to
    # step, for in between contrast and noise are estimated anew.
    series = {}
    for name, points in levels.items():
        steps, gains = np.array(points).T
        moved = gains > 0
        if moved.any():
            series[name] = steps[moved], gains[moved] / gains.sum()
    if not series:
        return []
    chart = lines(
        series,
        "step",
        "share of the level's gain",
        "By how much each step lowered the energy. Curves should fall: when a step gains next to nothing, it is done.",
        logarithmic=True,
    )
    return [Part("charts", title="Energy", pictures=[chart])]


def _weights(folder: Path) -> list[Part]:
    path = folder / "weights.ome.zarr"
    if not path.exists():
        return []
    weights = open_volume(str(path))
    parts: list[Part] = []
    for channel in range(weights.channels):
        volume = shrink(weights, channel=channel)
        name = weights.channel_names[channel] if weights.channel_names else f"weight {channel}"
        pictures = []
        for axis in range(3):
            index = volume.array.shape[axis] // 2
            values, _ = square_plane(plane(volume.array, axis, index), volume.grid, axis, smooth=True)
            pictures.append(encode(coloured(values, "viridis", 0, 1), f"{name}, {place(volume.grid, axis, index)}"))
        parts.append(Part("pictures", title="" if parts else "Weights: dark 0, bright 1", pictures=pictures))
    return parts


def _figures(manifest: dict[str, object]) -> list[Part]:
    figures = manifest.get("figures")
    if not isinstance(figures, dict) or not figures:
        return []
    rows = [("figure", "value"), *((name.replace("_", " "), _number(value)) for name, value in figures.items())]
    return [Part("table", title="Figures", rows=rows)]


def _region_section(path: Path) -> Section:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    header = [name.replace("_", " ") for name in rows[0]]
    shown = [header, *([_short(text) for text in row] for row in rows[1:])]
    return Section(
        "regions",
        "Regions",
        "Volume and intensity of every region of the atlas on the sample, from regions.csv. Click a heading to sort.",
        [Part("sortable", rows=shown)],
    )


def _short(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    if math.isnan(value):
        # An empty cell is sorted below all others.
        return ""
    return text if text.isdigit() else f"{value:.5g}"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_number(item) for item in value)
    return str(value)
