"""2021: the raw planes of a COLM channel, from S3 to this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import to_dtype
from cloudreg.io.image_series import read_image
from cloudreg.io.objects import list_files, read_files
from cloudreg.scripts._legacy import moved, run
from cloudreg.scripts._s3url import S3Url
from cloudreg.tiles.colm import INI, PLANE, SCANNED_CELLS, VIEW, is_corrected
from cloudreg.tiles.plane_files import write_plane

moved("download_raw_data", "aws s3 sync, and cloudreg run on what it brings")

__all__ = [
    "download_raw_data",
    "download_tile",
    "download_tiles",
    "get_all_s3_objects",
    "get_list_of_files_to_process",
    "get_out_path",
]

_TOGETHER = 64


def download_raw_data(in_bucket_path: str, channel: int, outdir: str) -> None:
    """Bring the planes of a channel, and the two files that describe the acquisition.

    Parameters
    ----------
    in_bucket_path
        ``bucket/experiment``, with or without ``s3://``.
    channel
        Which one.
    outdir
        Gets ``VW0/LOC000/…``. Planes that are there whole are not fetched again.

    Raises
    ------
    InputError
        If there is no plane of that channel.
    """
    place = S3Url.of(in_bucket_path)
    tiles = get_list_of_files_to_process(place.bucket, place.key, channel)
    if not tiles:
        raise InputError(f"expected planes of channel {channel} under {place.url}/{VIEW}, got none: check the address")
    parts = [tuple(tiles[i : i + _TOGETHER]) for i in range(0, len(tiles), _TOGETHER)]
    with Engine() as engine:
        engine.run(partial(_download, place.bucket, outdir), parts, label="Downloading", unit="parts")
    download_description(place.url, outdir)


def download_description(in_bucket_path: str, outdir: str | Path) -> None:
    """Bring those of the two files that describe an acquisition that are not here yet."""
    home = Path(outdir)
    missing = [name for name in (INI, SCANNED_CELLS) if not (home / name).exists()]
    place = S3Url.of(in_bucket_path)
    for name, content in read_files(place.url, missing).items():
        home.mkdir(parents=True, exist_ok=True)
        part = home / f".{name}.part"
        part.write_bytes(content)
        part.replace(home / name)


def download_tile(
    s3: Any, raw_tile_bucket: str, raw_tile_path: str, outdir: str, bias: ArrayLike | None = None
) -> None:
    """Bring one plane.

    Parameters
    ----------
    s3
        boto3's S3 resource.
    raw_tile_bucket, raw_tile_path
        Where it lies.
    outdir
        See `get_out_path`.
    bias
        Multiplied by the plane before it is stored, of its size; the result is rounded and clipped.
    """
    from cloudreg.cloud.s3 import download_file

    path = Path(get_out_path(raw_tile_path, outdir))
    if bias is None:
        download_file(s3.meta.client, raw_tile_bucket, raw_tile_path, path)
        return
    # Beside its place: what lies there may be multiplied already.
    fetched = path.with_name(f".recorded.{path.name}")
    try:
        download_file(s3.meta.client, raw_tile_bucket, raw_tile_path, fetched)
        raw, factor = read_image(fetched), np.asarray(bias, dtype=float)
    finally:
        fetched.unlink(missing_ok=True)
    if factor.shape != raw.shape:
        raise InputError(f"expected a correction of {raw.shape} for {raw_tile_path}, got one of {factor.shape}")
    write_plane(path, to_dtype(raw * factor, raw.dtype))


def download_tiles(tiles: Sequence[str], raw_tile_bucket: str, outdir: str) -> None:
    """Bring some planes, by their keys; see `get_out_path` for where to."""
    _download(raw_tile_bucket, outdir, tiles)


def get_all_s3_objects(s3: Any, **base_kwargs: Any) -> Iterator[dict[str, Any]]:
    """Yield what S3 says of each object, such as its ``Key``, over all pages of a listing.

    Parameters
    ----------
    s3
        boto3's S3 client.
    **base_kwargs
        Of ``list_objects_v2``, such as ``Bucket`` and ``Prefix``.
    """
    for page in s3.get_paginator("list_objects_v2").paginate(**base_kwargs):
        yield from page.get("Contents", [])


def get_list_of_files_to_process(in_bucket_name: str, prefix: str, channel: int) -> list[str]:
    """Return the keys of all planes of a channel, as they were recorded, under a prefix."""
    folder = f"{prefix.strip('/')}/".lstrip("/")
    keys = (folder + name for name in list_files(f"s3://{in_bucket_name}/{folder}"))
    return [key for key in keys if (m := PLANE.search(key)) and int(m[3]) == channel and not is_corrected(key)]


def get_out_path(in_path: str, outdir: str) -> str:
    """Return where a plane is stored: in ``outdir``, in the folders that TeraStitcher needs.

    Examples
    --------
    >>> get_out_path("brain/VW0/LOC000/VW0_LOC000D_CM0_CHN00_PLN0000.tif", "/data")
    '/data/VW0/LOC000/VW0_LOC000D_CM0_CHN00_PLN0000.tif'
    """
    parts = in_path.strip("/").split("/")
    home = Path(outdir)
    if home.name == VIEW:
        home = home.parent
    return str(home.joinpath(VIEW, *parts[-2:]))


def _download(bucket: str, outdir: str, keys: Sequence[str]) -> None:
    from cloudreg.cloud.s3 import download_file, s3_client

    client = s3_client(bucket)
    for key in keys:
        download_file(client, bucket, key, get_out_path(key, outdir))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.download_raw_data", description="bring raw planes")
    parser.add_argument("--in_bucket_path", required=True, help="bucket/experiment")
    parser.add_argument("--channel", required=True, type=int, help="channel")
    parser.add_argument("--outdir", default="/home/ubuntu/", help="where to (default: %(default)s)")
    return run(lambda given: download_raw_data(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
