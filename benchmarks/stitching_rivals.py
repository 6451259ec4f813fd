"""Run one rival of `benchmarks/stitching.py` on one case, in an interpreter that has it.

    python benchmarks/stitching_rivals.py METHOD FOLDER

METHOD is a key of `METHODS`. FOLDER holds ``stacks.json`` and one 3D TIFF a tile; it gets ``positions.npy``, (n, 3),
z y x in pixels, and ``seconds.txt``: the time without importing and, for multiview-stitcher, without reading.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_AXES = ("z", "y", "x")


def multiview(folder: Path, case: dict, *, binned: bool) -> tuple[np.ndarray, float]:
    """Phase correlation of neighbours and its global optimisation, as the readme shows it.

    ``binned`` leaves the binning to it, which is its default; otherwise it gets every pixel.
    """
    import tifffile
    from multiview_stitcher import msi_utils, param_utils, registration
    from multiview_stitcher import spatial_image_utils as si_utils

    stacks = [tifffile.imread(folder / name) for name in case["names"]]
    start = time.perf_counter()
    images = [
        msi_utils.get_msim_from_sim(
            si_utils.get_sim_from_array(
                stack,
                dims=_AXES,
                scale=dict.fromkeys(_AXES, 1.0),
                translation=dict(zip(_AXES, position, strict=True)),
                transform_key="stage",
            ),
            scale_factors=[],
        )
        for stack, position in zip(stacks, case["nominal_px"], strict=True)
    ]
    # Its overlaps are grown by what the stage may be off by.
    tolerance = {axis: float(j) for axis, j in zip(_AXES, case["search_px"], strict=True)}
    registration.register(
        images,
        reg_channel_index=0,
        transform_key="stage",
        new_transform_key="found",
        overlap_tolerance=tolerance,
        registration_binning=None if binned else dict.fromkeys(_AXES, 1),
    )
    moved = [
        np.asarray(param_utils.translation_from_affine(np.asarray(_affine(msi_utils, image)).reshape(4, 4)))
        for image in images
    ]
    return np.array(case["nominal_px"]) + np.array(moved), time.perf_counter() - start


def _affine(msi_utils: object, image: object) -> np.ndarray:
    return np.asarray(msi_utils.get_transform_from_msim(image, "found")).squeeze()


def zeta(folder: Path, case: dict) -> tuple[np.ndarray, float]:
    """Correlate frames at three depths, then its global optimisation; positions are whole pixels."""
    from argparse import Namespace

    from zetastitcher.align.filematrix import FileMatrix
    from zetastitcher.fuse.__main__ import compute_absolute_positions

    depth, height, _ = case["tile_shape"]
    z, y, x = case["search_px"]
    start = time.perf_counter()
    command = [str(Path(sys.executable).parent / "stitch-align"), "-o", "stitch.yml", "-j", str(os.cpu_count())]
    command += ["--dz", z, "--dy", y, "--dx", x, "--overlap", round(case["overlap"] * height)]
    command += ["--z-samples", 3, "--z-stride", depth // 4, "."]
    subprocess.run([str(part) for part in command], cwd=folder, check=True)
    matrix = FileMatrix(str(folder / "stitch.yml"))
    arguments = Namespace(yml_file=str(folder / "stitch.yml"), no_global=False)
    compute_absolute_positions(arguments, matrix)
    frame = matrix.data_frame
    by_name = {Path(str(name)).name: frame.loc[name, ["Zs", "Ys", "Xs"]].to_numpy(float) for name in frame.index}
    return np.array([by_name[name] for name in case["names"]]), time.perf_counter() - start


METHODS = {
    "multiview-stitcher": lambda folder, case: multiview(folder, case, binned=True),
    "multiview-stitcher, every pixel": lambda folder, case: multiview(folder, case, binned=False),
    "zetastitcher": zeta,
}

if __name__ == "__main__":
    here = Path(sys.argv[2])
    positions, seconds = METHODS[sys.argv[1]](here, json.loads((here / "stacks.json").read_text()))
    np.save(here / "positions.npy", positions)
    (here / "seconds.txt").write_text(str(seconds))
