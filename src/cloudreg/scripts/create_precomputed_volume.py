"""2021: a folder of planes to a precomputed volume, whole or plane by plane."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cloudreg.errors import InputError, MissingExtraError
from cloudreg.execution import Engine
from cloudreg.io import convert
from cloudreg.io.image_series import open_image_series, read_image
from cloudreg.io.objects import plain_address, read_json, write_new_json
from cloudreg.io.precomputed import PREFIX
from cloudreg.scripts._isotropic import write_isotropic
from cloudreg.scripts._legacy import boolean, moved, precomputed, run, three
from cloudreg.scripts._slices import write_slice

moved("create_precomputed_volume", "cloudreg convert")

__all__ = ["create_cloud_volume", "create_precomputed_volume", "get_image_dims", "process"]


def create_precomputed_volume(
    input_path: str,
    voxel_size: ArrayLike,
    precomputed_path: str,
    extension: str = "tif",
    num_procs: int | None = None,
    compress: bool = False,
    resample_iso: bool = False,
) -> None:
    """Write a folder of planes as a precomputed volume with all its resolutions.

    Parameters
    ----------
    input_path
        Folder of one file a plane.
    voxel_size
        x, y, z in micrometres.
    precomputed_path
        A new volume, in a bucket or here.
    extension
        Ending of the planes' names.
    num_procs
        Workers; by default as many as there are cores.
    compress
        Compress the chunks, many of which then share an object.
    resample_iso
        Make the voxels as long along all axes as along the longest.
    """
    volume = open_image_series(Path(input_path), extension, three(voxel_size, "voxel size")[::-1].tolist())
    with Engine(workers=num_procs) as engine:
        if resample_iso:
            write_isotropic(volume, precomputed(precomputed_path), engine)
        else:
            convert(volume, precomputed(precomputed_path), engine=engine, sharded=True if compress else None)


def create_cloud_volume(
    precomputed_path: str,
    img_size: Sequence[int],
    voxel_size: ArrayLike,
    num_mips: int,
    chunk_size: Sequence[int],
    parallel: bool = False,
    layer_type: str = "image",
    dtype: str = "uint16",
) -> Any:
    """Make an empty precomputed volume whose levels are halved in x and y, to be filled plane by plane.

    Parameters
    ----------
    precomputed_path
        A new volume, or one that was made by the same call.
    img_size
        Voxels x, y, z.
    voxel_size
        x, y, z in nanometres.
    num_mips
        Smaller levels, such as 6.
    chunk_size
        x, y, z, such as [1024, 1024, 1].
    parallel
        Whether the object that is returned works in parallel.
    layer_type
        ``"image"`` or ``"segmentation"``.
    dtype
        Type of a voxel.

    Returns
    -------
    cloudvolume.CloudVolume
    """
    try:
        from cloudvolume import CloudVolume
    except ImportError:
        raise MissingExtraError("cloud-volume", "legacy") from None
    if layer_type not in ("image", "segmentation"):
        raise InputError(f"expected image or segmentation as the type of the layer, got {layer_type!r}")
    x, y, z = (int(n) for n in img_size)
    nm = three(voxel_size, "voxel size")
    scales = []
    for mip in range(num_mips + 1):
        size = [nm[0] * 2**mip, nm[1] * 2**mip, nm[2]]
        whole = [int(v) if v == int(v) else float(v) for v in size]
        scales.append(
            {
                "key": "_".join(f"{v:g}" for v in whole),
                "size": [-(-x // 2**mip), -(-y // 2**mip), z],
                "resolution": whole,
                "voxel_offset": [0, 0, 0],
                "chunk_sizes": [[int(n) for n in chunk_size]],
                "encoding": "raw",
            }
        )
    info: dict[str, Any] = {"@type": "neuroglancer_multiscale_volume", "type": layer_type, "num_channels": 1}
    info |= {"data_type": str(np.dtype(dtype)), "scales": scales}
    address = plain_address(precomputed_path.removeprefix(PREFIX))
    if not write_new_json(address, "info", info) and read_json(address, "info") != info:
        raise InputError(f"expected nothing or the same volume at {address}, got another one: choose a new place")
    place = address if "://" in address else f"file://{address}"
    return CloudVolume(place, parallel=parallel, fill_missing=True)


def get_image_dims(files: Sequence[str]) -> list[int]:
    """Return the size x, y, z of a volume of one file a plane."""
    if not files:
        raise InputError("expected the files of a volume, got none")
    height, width = read_image(Path(files[0])).shape
    return [width, height, len(files)]


def process(z: int, file_path: str, layer_path: str, num_mips: int) -> None:
    """Write one plane into a precomputed volume.

    Parameters
    ----------
    z
        Number of the plane.
    file_path
        Its picture.
    layer_path
        The volume, see `create_cloud_volume`.
    num_mips
        Smaller copies to write, averages over 2 x 2 pixels each.
    """
    write_slice(layer_path, z, read_image(Path(file_path)), num_mips)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m cloudreg.scripts.create_precomputed_volume", description="planes to a precomputed volume"
    )
    parser.add_argument("input_path", help="folder of planes")
    parser.add_argument("voxel_size", nargs="+", help="x y z, micrometres; before or after the path")
    parser.add_argument("precomputed_path", help="where the volume goes")
    parser.add_argument("--num_procs", type=int, default=None, help="workers")
    parser.add_argument("--compress", type=boolean, default=False, help="True or False")
    parser.add_argument("--resample_iso", type=boolean, default=False, help="True or False")
    given = parser.parse_args(arguments)
    words = [*given.voxel_size, given.precomputed_path]
    given.precomputed_path, *sizes = sorted(words, key=lambda word: _is_number(word))
    if len(sizes) != 3 or not all(_is_number(word) for word in sizes) or _is_number(given.precomputed_path):
        parser.error("expected three voxel sizes and one path")
    given.voxel_size = [float(word) for word in sizes]
    return run(lambda given: create_precomputed_volume(**vars(given)), given)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
