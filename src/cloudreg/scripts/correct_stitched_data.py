"""2021: the slow illumination of a stitched volume, taken off."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination import correct_volume, estimate_bias
from cloudreg.io import open_volume, to_dtype
from cloudreg.scripts._legacy import moved, precomputed, run
from cloudreg.scripts._slices import write_slice
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Box

if TYPE_CHECKING:
    import SimpleITK

moved("correct_stitched_data", "cloudreg correct-volume")

__all__ = ["correct_stitched_data", "process_slice"]


def correct_stitched_data(data_s3_path: str, out_s3_path: str, resolution: float = 15, num_procs: int = 12) -> None:
    """Take the slow illumination off a precomputed volume, and write the even one.

    Parameters
    ----------
    data_s3_path
        What is corrected; it stays as it is.
    out_s3_path
        A new precomputed volume.
    resolution
        Micrometres at which the illumination is found; coarser where that would be too many voxels.
    num_procs
        Workers, but no more than there are cores.
    """
    if num_procs < 1:
        raise InputError(f"expected at least one process, got {num_procs}")
    settings = IlluminationSettings(working_voxel_um=float(resolution))
    volume = open_volume(precomputed(data_s3_path))
    with Engine(workers=min(num_procs, os.cpu_count() or 1)) as engine:
        field = estimate_bias(volume, 0, settings, engine=engine)
        correct_volume(volume, field, precomputed(out_s3_path), settings, engine)


def process_slice(bias_slice: SimpleITK.Image, z: int, data_orig_path: str, data_bc_path: str) -> None:
    """Correct one plane of a precomputed volume, and write it into another.

    Parameters
    ----------
    bias_slice
        2D image that the plane is multiplied by; of any size, it covers the plane.
    z
        Number of the plane.
    data_orig_path, data_bc_path
        The volume that is read, and the one, of the same size and type, that is written to with all its levels of the
        same planes.
    """
    import SimpleITK as sitk

    source = open_volume(precomputed(data_orig_path))
    depth, height, width = source.grid.shape
    if not 0 <= z < depth:
        raise InputError(f"expected a plane within 0 to {depth - 1} of {data_orig_path}, got {z}")
    bias = sitk.Cast(bias_slice, sitk.sitkFloat32)
    if bias.GetSize() != (width, height):
        ratio = [n / wanted for n, wanted in zip(bias.GetSize(), (width, height), strict=True)]
        bias.SetOrigin((0.0, 0.0))
        bias.SetSpacing((1.0, 1.0))
        # Both cover the same field: their outer corners coincide.
        start = [(r - 1) / 2 for r in ratio]
        bias = sitk.Resample(
            bias, (width, height), sitk.Transform(2, sitk.sitkIdentity), sitk.sitkLinear, start, ratio,
            bias.GetDirection(), 1.0, sitk.sitkFloat32, True,
        )  # fmt: skip
    plane = source.read(Box((z, 0, 0), (z + 1, height, width)))[0]
    write_slice(data_bc_path, z, to_dtype(plane * sitk.GetArrayFromImage(bias).astype(np.float64), source.dtype))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m cloudreg.scripts.correct_stitched_data", description="even out a stitched volume"
    )
    parser.add_argument("data_s3_path", help="precomputed volume")
    parser.add_argument("out_s3_path", help="where the even volume goes")
    parser.add_argument("--num_procs", type=int, default=15, help="workers (default: %(default)s)")
    parser.add_argument("--resolution", type=float, default=15, help="micrometres (default: %(default)s)")
    return run(lambda given: correct_stitched_data(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
