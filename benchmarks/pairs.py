"""Registration of real pairs, beside other tools: what can be measured where nobody knows the whole truth.

    python benchmarks/pairs.py --data DATA --out OUT
    python benchmarks/pairs.py --data DATA --out OUT --methods cloudreg ants-syn --rivals-python PYTHON

DATA is a folder of real volumes (default: the environment variable CLOUDREG_TEST_DATA); `PAIRS` says which files. OUT
gets a folder a pair, with the files that all methods start from and what each found, and a picture a pair: three
planes of the target with the outlines of the atlas's regions, a row a method. What was found before is not
computed again. Every method starts from the same two NIfTI files, whose headers say how they lie, and has its defaults;
from CloudReg the letters of a file that has none of its own are kept.

*explained* is the part of the target's variance inside its brain that the means of the atlas's regions explain, as the
method laid them there: 1 - sum (grey - mean of its region)^2 / sum (grey - mean of the brain)^2. It asks nothing of the
modality, is no more than the regions can explain (cortex is not of one grey), and grows with their number, so compare
methods and not pairs. Greys are clipped at their first and last per cent; what no region covers counts as one.
*by grey* is the same with 32 classes of the template's grey for regions: the correlation ratio.

*Dice* is the mean over the regions of more than 500 scored voxels, where both sides have the same labels.

*error* is the median and 90th percentile, inside the brain, of the distance to where the two headers put the point: in
the two pairs that were imaged or averaged on one grid this is the error, and of Colin27 and MNI152, which share a space
but not a shape, only a check.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_filter, label

from cloudreg.io import open_volume
from cloudreg.io.frames import ras_from_grid
from cloudreg.registration import open_registration
from cloudreg.registration.levels import otsu_threshold
from registration import run_rival, timed
from rivals import METHODS

_MOST_POINTS = 300_000
"""Voxels of the brain that are scored, evenly spaced."""

_LARGE = 500
"""Regions of fewer scored voxels of the target are left out of the Dice."""

_CLASSES = 32
"""Of the template's grey, where it has no labels."""


@dataclass(frozen=True)
class Side:
    """A volume of a pair: a file below the data folder, and what its header does not say.

    Parameters
    ----------
    file
        Image.
    labels, mask
        On its grid: regions, and where its brain is, which is otherwise found by its brightness.
    letters, voxel_um
        Of files without a world.
    told
        Whether CloudReg is told the letters; of an atlas it must be.
    shrink
        Voxels a side that are averaged: no method gains from a brain of 14 million voxels.
    """

    file: str
    labels: str | None = None
    mask: str | None = None
    letters: str | None = None
    voxel_um: tuple[float, float, float] | None = None
    told: bool = True
    shrink: int = 1


@dataclass(frozen=True)
class Pair:
    """A target, an atlas, and whether they lie on each other as their headers say."""

    target: Side
    template: Side
    same_space: bool = False


_ALLEN = Side("allen_ccfv3/average_template_100.nrrd", "allen_ccfv3/annotation_100.nrrd", letters="asr")
_CT = Side("mouse_ct_mri/Mouse_CT.nii.gz", "mouse_ct_mri/labels.nii.gz", "mouse_ct_mri/brain_mask.nii.gz")
_T2 = Side("mouse_ct_mri/MRI_T2.nii.gz", "mouse_ct_mri/labels.nii.gz", "mouse_ct_mri/brain_mask.nii.gz")
_XRAY = Side("mouse_microct/xray_small.nii", letters="lai", told=False)
_MRI = Side("mouse_microct/MRI_structural.nii")
_YERKES = "macaque_mri/Yerkes19_Avgwmparc.nii.gz"
_YERKES_T1 = Side("macaque_mri/Yerkes19_T1w_0.5mm_brain.nii.gz", _YERKES)
_YERKES_T2 = Side("macaque_mri/Yerkes19_T2w_0.5mm_brain.nii.gz", _YERKES)
# Yerkes19's labels lie 0.3 to 0.8 mm off its own images: they are held against themselves only.
_YERKES_ALONE = Side("macaque_mri/Yerkes19_T1w_0.5mm_brain.nii.gz")
_INIA = Side("macaque_mri/inia19-t1-brain.nii.gz", "macaque_mri/inia19-NeuroMaps.nii.gz")
_COLIN = Side("human_mri/ch2.nii.gz", "human_mri/aal.nii.gz")
_MNI = Side("human_mri/mni152_2009a_sym_t1.nii.gz")

PAIRS = {
    "two-photon": Pair(
        Side("mouse_stpt/brain_psl_50x40x40um.tif", letters="psl", voxel_um=(50, 40, 40), shrink=2), _ALLEN
    ),
    "hemisphere": Pair(Side("mouse_stpt/hemisphere_l_asr_100um.tif", letters="asr", voxel_um=(100, 100, 100)), _ALLEN),
    "micro-CT": Pair(_XRAY, _MRI),
    "MRI-on-micro-CT": Pair(_MRI, _XRAY),
    "CT": Pair(_CT, _T2, same_space=True),
    "T2-on-CT": Pair(_T2, _CT, same_space=True),
    "macaque-T2": Pair(_YERKES_T2, _YERKES_T1, same_space=True),
    "INIA19-to-Yerkes19": Pair(_YERKES_ALONE, _INIA),
    "Colin27-to-MNI152": Pair(_MNI, _COLIN, same_space=True),
}


@dataclass(frozen=True)
class Row:
    """One method on one pair; NaN is what could not be measured."""

    pair: str
    method: str
    explained: float
    by_grey: float
    dice: float
    median_um: float
    p90_um: float
    seconds: float
    note: str = ""


def make_pair(folder: Path, data: Path, pair: Pair) -> None:
    """Write the two images, their labels, the target's brain and the points that are asked for."""
    folder.mkdir(parents=True)
    for name, side in (("target", pair.target), ("template", pair.template)):
        values, world = _read(data / side.file, side)
        _save(folder / f"{name}.nii.gz", values, world, untold=name == "target" and not side.told)
        if side.labels:
            _save(folder / f"{name}_labels.nii.gz", _read(data / side.labels, side)[0].astype(np.uint32), world)
        if name == "target":
            brain = _read(data / side.mask, side)[0] > 0 if side.mask else _brain(values)
            np.save(folder / "brain.npy", brain)
            wanted = np.argwhere(brain)
            wanted = wanted[:: max(1, len(wanted) // _MOST_POINTS)]
            middle = np.rint(np.argwhere(brain).mean(axis=0)).astype(int)
            index = np.concatenate([wanted, *(_plane(brain.shape, axis, middle[axis]) for axis in range(3))])
            np.save(folder / "index.npy", index)
            np.save(folder / "points.npy", index @ world[:3, :3].T + world[:3, 3])
            (folder / "pair.json").write_text(json.dumps({"scored": len(wanted), "middle": middle.tolist()}))


def _read(file: Path, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the 4 x 4 from their index to NIfTI's world, mm."""
    volume = open_volume(str(file), voxel_size_um=side.voxel_um, orientation=side.letters)
    values, grid = np.squeeze(volume.read()), volume.grid
    if side.shrink > 1:
        factors = [side.shrink] * 3
        whole = tuple(slice(0, n - n % side.shrink) for n in values.shape)
        blocks = np.reshape(values[whole], [k for n in values.shape for k in (n // side.shrink, side.shrink)])
        values, grid = blocks.mean(axis=(1, 3, 5), dtype=np.float32), grid.downsampled(factors)
    world = ras_from_grid(grid, volume.orientation)
    # Ours is um along z, y, x of the letters ipl; NIfTI's is mm.
    world[:3] /= 1000
    return values, world


def _save(path: Path, values: np.ndarray, world: np.ndarray, *, untold: bool = False) -> None:
    image = nibabel.Nifti1Image(values, world)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    if untold:
        silent = nibabel.Nifti1Image(values, None)
        silent.header.set_zooms(np.linalg.norm(world[:3, :3], axis=0))
        silent.header.set_xyzt_units("mm")
        nibabel.save(silent, path.with_name(path.name.replace(".nii", "_untold.nii")))


def _brain(values: np.ndarray) -> np.ndarray:
    """Return the largest bright thing, holes filled."""
    smooth = gaussian_filter(values.astype(np.float32), 1)
    parts, _ = label(smooth > otsu_threshold(smooth) / 2)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return np.asarray(binary_fill_holes(largest) & (values != values.min()))


def _plane(shape: tuple[int, ...], axis: int, at: int) -> np.ndarray:
    one = np.zeros(shape, dtype=bool)
    one[(slice(None),) * axis + (at,)] = True
    return np.argwhere(one)


def run_ours(folder: Path, work: Path, options: list[str]) -> tuple[np.ndarray | None, float, str]:
    """Register with CloudReg; return where the points lie in the template (world, mm), seconds, and its doubts."""
    out, log = work / "registration", work / "cloudreg.txt"
    untold = folder / "target_untold.nii.gz"
    target = untold if untold.exists() else folder / "target.nii.gz"
    command = [sys.executable, "-m", "cloudreg", "register", str(target), str(out), "--no-report"]
    command += ["--template", str(folder / "template.nii.gz")]
    if (folder / "template_labels.nii.gz").exists():
        command += ["--labels", str(folder / "template_labels.nii.gz")]
    code, seconds, _, _ = timed([*command, *options], log)
    if code != 0:
        return None, seconds, log.read_text().strip().splitlines()[-1]
    opened = open_registration(out)
    here = opened.target_grid.index_to_um(np.load(folder / "index.npy"))
    there, _ = opened.transform.target_to_atlas(here)
    index = opened.atlas_frame.grid.um_to_index(there)
    world = nibabel.load(folder / "template.nii.gz").affine
    figures = opened.manifest["figures"]
    scales = " x ".join(f"{s:.2f}" for s in figures["affine_scales"])
    note = f"scales {scales}, pose {figures['pose']}; " + "; ".join(figures["doubts"])
    return index @ world[:3, :3].T + world[:3, 3], seconds, note


def explained(greys: np.ndarray, regions: np.ndarray) -> float:
    """Return the part of the greys' variance that the regions' means explain."""
    _, which = np.unique(regions, return_inverse=True)
    count, total = np.bincount(which), np.bincount(which, greys)
    within = float(np.sum(greys**2) - np.sum(total**2 / count))
    return 1 - within / float(np.sum((greys - greys.mean()) ** 2))


def overlap(own: np.ndarray, laid: np.ndarray) -> float:
    """Return the mean Dice of the target's ``own`` regions and those ``laid`` on it."""
    found = []
    for one in np.unique(own[own > 0]):
        a, b = own == one, laid == one
        if a.sum() > _LARGE:
            found.append(2 * np.count_nonzero(a & b) / (a.sum() + b.sum()))
    return float(np.mean(found))


def judge(folder: Path, pair: Pair, found_mm: np.ndarray) -> tuple[float, ...]:
    """Return the variance explained by regions and by grey, Dice, and the distance's median and 90th percentile, um."""
    scored = json.loads((folder / "pair.json").read_text())["scored"]
    index, points = np.load(folder / "index.npy")[:scored], np.load(folder / "points.npy")[:scored]
    found = found_mm[:scored]
    target = np.asarray(nibabel.load(folder / "target.nii.gz").dataobj)
    greys = target[tuple(index.T)].astype(float)
    greys = np.clip(greys, *np.quantile(greys, [0.01, 0.99]))
    by_regions = dice = median = p90 = float("nan")
    by_grey = explained(greys, _classes(folder, found))
    if pair.template.labels:
        regions = _at(folder / "template_labels.nii.gz", found)
        by_regions = explained(greys, regions)
    if pair.target.labels and pair.template.labels:
        own = np.asarray(nibabel.load(folder / "target_labels.nii.gz").dataobj)[tuple(index.T)]
        dice = overlap(own, regions)
    if pair.same_space:
        distance = 1000 * np.linalg.norm(found - points, axis=1)
        median, p90 = (float(v) for v in np.quantile(distance, [0.5, 0.9]))
    return by_regions, by_grey, dice, median, p90


def _classes(folder: Path, found_mm: np.ndarray) -> np.ndarray:
    """Return the class of the template's grey, as frequent as each other in its brain, at positions in its world."""
    template = folder / "template.nii.gz"
    values = np.asarray(nibabel.load(template).dataobj)
    tissue = values[values > otsu_threshold(values) / 2]
    return np.digitize(_at(template, found_mm), np.quantile(tissue, np.linspace(0, 1, _CLASSES)))


def _at(file: Path, found_mm: np.ndarray) -> np.ndarray:
    """Return the nearest voxel of a volume at positions in its world; 0 outside."""
    image = nibabel.load(file)
    values = np.asarray(image.dataobj)
    to_index = np.linalg.inv(image.affine)
    found_mm = np.where(np.isfinite(found_mm), found_mm, -1e6)
    index = np.rint(found_mm @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    inside = ((index >= 0) & (index < values.shape)).all(axis=1)
    result = np.zeros(len(index), values.dtype)
    result[inside] = values[tuple(index[inside].T)]
    return result


def draw(folder: Path, found: dict[str, np.ndarray], file: Path) -> None:
    """Draw three planes of the target, and for each method what it laid there.

    That is the outlines of the atlas's regions on the target; where there are none, the template with contours of the
    target's grey.
    """
    from matplotlib.figure import Figure

    target = np.asarray(nibabel.load(folder / "target.nii.gz").dataobj).astype(float)
    voxel = nibabel.load(folder / "target.nii.gz").header.get_zooms()[:3]
    about = json.loads((folder / "pair.json").read_text())
    brain = target[np.load(folder / "brain.npy")]
    contours = sorted({otsu_threshold(target.ravel()), *np.quantile(brain, [0.4, 0.8])})
    labels = folder / "template_labels.nii.gz"
    figure = Figure(figsize=(18, 7 * (len(found) + 1)), layout="constrained")
    axes = figure.subplots(len(found) + 1, 3, squeeze=False)
    for row, method in enumerate(["", *found]):
        start = about["scored"]
        for axis in range(3):
            others = [k for k in range(3) if k != axis]
            shape = [target.shape[k] for k in others]
            size = shape[0] * shape[1]
            here = np.take(target, about["middle"][axis], axis)
            ax, aspect = axes[row, axis], voxel[others[1]] / voxel[others[0]]
            ax.set_axis_off()
            ax.set_title(method or "target")
            there = found[method][start : start + size] if method else None
            start += size
            if there is None or labels.exists():
                _show(ax, here, aspect, brain)
            if there is None:
                continue
            if labels.exists():
                ax.imshow(_edges(_at(labels, there).reshape(shape)), origin="lower", aspect=aspect)
            else:
                _show(ax, _at(folder / "template.nii.gz", there).reshape(shape).astype(float), aspect)
                ax.contour(gaussian_filter(here, 0.7).T, contours, colors="orange", linewidths=0.8)
    figure.savefig(file, dpi=70)


def _show(ax: Any, plane: np.ndarray, aspect: float, greys: np.ndarray | None = None) -> None:
    low, high = np.quantile(plane if greys is None else greys, [0.01, 0.995])
    ax.imshow(plane.T, cmap="gray", vmin=min(low, 0), vmax=high, origin="lower", aspect=aspect)


def _edges(regions: np.ndarray) -> np.ndarray:
    """Return the borders between regions as an image (RGBA)."""
    edge = np.zeros(regions.shape, dtype=bool)
    edge[1:] |= regions[1:] != regions[:-1]
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    colours = np.zeros((*regions.shape[::-1], 4))
    colours[edge.T] = (1, 0.55, 0, 0.75)
    return colours


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the methods on the pairs, print a table and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDREG_TEST_DATA"), help="folder of the volumes")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=("cloudreg", "nothing", *METHODS), default=["cloudreg"])
    parser.add_argument("--rivals-python", default=sys.executable, help="interpreter that has the rivals")
    parser.add_argument("--options", default="", help="options for cloudreg register, in one string")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    chosen = parser.parse_args(arguments)
    if chosen.data is None:
        parser.error("expected --data or CLOUDREG_TEST_DATA")
    rows = []
    print(f"{'pair':20} {'method':12} {'explained':>9} {'by grey':>7} {'Dice':>6} {'median':>7} {'p90':>7} {'s':>6}")
    for name in chosen.pairs:
        folder = chosen.out / name
        if not (folder / "pair.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_pair(folder, chosen.data, PAIRS[name])
        pictures = {}
        for method in chosen.methods:
            row, found = _result(folder, name, method, chosen)
            rows.append(row)
            print(_line(row), flush=True)
            if found is not None:
                pictures[method] = found
        draw(folder, pictures, chosen.out / f"{name}.png")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _result(folder: Path, name: str, method: str, chosen: argparse.Namespace) -> tuple[Row, np.ndarray | None]:
    """Return what a method found, from the last time if it ran before."""
    work = folder / method
    if not (work / "row.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if method == "nothing":
            found, seconds, note = np.load(folder / "points.npy"), 0.0, ""
        elif method == "cloudreg":
            found, seconds, note = run_ours(folder, work, chosen.options.split())
        else:
            found, seconds, _, _, note = run_rival(method, folder, work, chosen.rivals_python, masks=False)
        if found is not None:
            np.save(work / "found.npy", found)
        (work / "row.json").write_text(json.dumps({"seconds": seconds, "note": note}))
    kept = json.loads((work / "row.json").read_text())
    if not (work / "found.npy").exists():
        return Row(name, method, *(float("nan"),) * 5, kept["seconds"], kept["note"]), None
    found = np.load(work / "found.npy")
    return Row(name, method, *judge(folder, PAIRS[name], found), kept["seconds"], kept["note"]), found


def _line(row: Row) -> str:
    return (
        f"{row.pair:20} {row.method:12} {row.explained:9.3f} {row.by_grey:7.3f} {row.dice:6.3f} "
        f"{row.median_um:7.0f} {row.p90_um:7.0f} "
        f"{row.seconds:6.1f}  {row.note}"
    )


if __name__ == "__main__":
    main()
