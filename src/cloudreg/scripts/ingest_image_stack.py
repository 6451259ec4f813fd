"""2021: an image stack, of one file or one a plane, to a precomputed volume."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from cloudreg.execution import Engine
from cloudreg.io import convert, open_volume
from cloudreg.io.image_series import open_image_series
from cloudreg.scripts._legacy import moved, precomputed, run, three

moved("ingest_image_stack", "cloudreg convert")

__all__ = ["ingest_image_stack"]


def ingest_image_stack(s3_path: str, voxel_size: ArrayLike, img_stack: str, extension: str, dtype: str) -> None:
    """Write an image stack as a precomputed volume.

    Parameters
    ----------
    s3_path
        A new volume, in a bucket or here.
    voxel_size
        x, y, z in micrometres.
    img_stack
        A file of any format that is read, or a folder of planes.
    extension
        Ending of the planes' names in a folder.
    dtype
        Type of a voxel of the result; numbers are rounded and clipped.
    """
    size = three(voxel_size, "voxel size")[::-1].tolist()
    stack = Path(img_stack)
    planes = stack.is_dir() and stack.suffix != ".zarr"
    volume = open_image_series(stack, extension, size) if planes else open_volume(stack, voxel_size_um=size)
    with Engine() as engine:
        convert(volume, precomputed(s3_path), engine=engine, dtype=dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m cloudreg.scripts.ingest_image_stack", description="an image stack to a precomputed volume"
    )
    parser.add_argument("-s3_path", required=True, help="where the volume goes")
    parser.add_argument("-img_stack", required=True, help="file, or folder of planes")
    parser.add_argument("-fmt", dest="extension", required=True, help="ending of the planes' names, such as tif")
    parser.add_argument("-voxel_size", required=True, nargs=3, type=float, help="x y z, micrometres")
    parser.add_argument("--dtype", default="uint16", help="type of a voxel (default: %(default)s)")
    return run(lambda given: ingest_image_stack(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
