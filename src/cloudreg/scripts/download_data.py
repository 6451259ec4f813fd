"""2021: a precomputed volume, at a resolution, to a file."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume, convert, open_volume, part_of
from cloudreg.io.writing import require_new
from cloudreg.scripts._isotropic import write_isotropic
from cloudreg.scripts._legacy import boolean, moved, precomputed, run

moved("download_data", "cloudreg download")

__all__ = ["download_data", "get_mip_at_res"]


def get_mip_at_res(vol: Any, resolution: float) -> tuple[int, NDArray[np.float64]]:
    """Find the coarsest level that is at least as fine as a resolution.

    Parameters
    ----------
    vol
        A CloudVolume.
    resolution
        Nanometres.

    Returns
    -------
    mip, resolution
        The level, and its voxel size x, y, z in nanometres. An axis that is coarser than asked for at the finest
        level does not count.
    """
    sizes = [np.asarray(scale["resolution"], dtype=float) for scale in vol.scales]
    limit = np.maximum(resolution, sizes[0]) * (1 + 1e-6)
    mip = max(i for i, size in enumerate(sizes) if i == 0 or (size <= limit).all())
    return mip, sizes[mip]


def download_data(
    s3_path: str,
    outfile: str,
    desired_resolution: float = 15000,
    resample_isotropic: bool = False,
    return_size: bool = False,
) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Write a precomputed volume to a file.

    Parameters
    ----------
    s3_path
        The volume.
    outfile
        TIFF, NIfTI, NRRD, another format of ITK, or OME-Zarr, by its name; new. ITK's have axes x, y, z and lengths in
        millimetres.
    desired_resolution
        Nanometres. The coarsest level that is as fine is taken; the finest, if none is.
    resample_isotropic
        Make the voxels as long along all axes as along the longest.
    return_size
        Return the size, too.

    Returns
    -------
    resolution
        Voxel size x, y, z of what was written, micrometres.
    size
        Its voxels x, y, z; only with ``return_size``.
    """
    if not desired_resolution > 0:
        raise InputError(f"expected a resolution above 0 nm, got {desired_resolution}")
    volume = open_volume(precomputed(s3_path))
    part = part_of(volume, level=volume.level_near(desired_resolution / 1000))
    with Engine() as engine, tempfile.TemporaryDirectory(prefix="cloudreg-download-") as folder:
        itk = not outfile.lower().endswith((".tif", ".tiff", ".zarr"))
        if itk:
            require_new(Path(outfile), overwrite=False)
        place = f"{folder}/volume.ome.zarr" if itk else outfile
        if resample_isotropic:
            written = write_isotropic(part, place, engine)
        else:
            written = part if itk else convert(part, place, engine=engine)
        if itk:
            _write_itk(written, outfile, engine)
        resolution = np.round(written.grid.voxel_size_um[::-1], 6)
        return (resolution, np.array(written.grid.shape[::-1])) if return_size else resolution


def _write_itk(volume: Volume, outfile: str, engine: Engine) -> None:
    """Write a file with axes x, y, z and millimetres, as ITK has them."""
    import SimpleITK as sitk

    needed = 2 * int(np.prod(volume.grid.shape)) * volume.dtype.itemsize
    if needed > engine.memory_bytes:
        raise InputError(
            f"{outfile} must be held in memory to be written, {needed / 1e9:.3g} GB, and "
            f"{engine.memory_bytes / 1e9:.3g} GB are free: write a TIFF or OME-Zarr, or take a coarser resolution"
        )
    image = sitk.GetImageFromArray(volume.read())
    image.SetSpacing([v / 1000 for v in volume.grid.voxel_size_um[::-1]])
    image.SetOrigin([v / 1000 for v in volume.grid.origin_um[::-1]])
    file = Path(outfile)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".unfinished.{file.name}")
    try:
        sitk.WriteImage(image, str(unfinished))
    except RuntimeError as error:
        raise InputError(f"expected a name of a format of ITK, such as .nrrd or .nii.gz, got {outfile}") from error
    unfinished.replace(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.download_data", description="a volume to a file")
    parser.add_argument("s3_path", help="precomputed volume")
    parser.add_argument("outfile", help="file to write")
    parser.add_argument("desired_resolution", type=float, help="nanometres")
    isotropic = parser.add_argument("--isotropic", type=boolean, default=False, help="True or False")
    isotropic.dest = "resample_isotropic"
    return run(lambda given: download_data(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
