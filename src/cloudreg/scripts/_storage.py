"""Folders of results, here or in a bucket."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cloudreg.execution import Engine
from cloudreg.io.objects import is_remote
from cloudreg.scripts._s3url import S3Url

_TOGETHER = 64


def store(folder: Path, place: str, engine: Engine) -> None:
    """Copy a folder with all its files to ``s3://…``, or to a folder on this machine."""
    if not is_remote(place):
        shutil.copytree(folder, place, dirs_exist_ok=True)
        return
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    parts = [tuple(files[i : i + _TOGETHER]) for i in range(0, len(files), _TOGETHER)]
    engine.run(partial(_upload, folder, S3Url.of(place)), parts, label="Uploading", unit="parts")


def store_file(file: Path, place: str) -> None:
    """Copy a file into ``s3://…``, or into a folder on this machine."""
    if is_remote(place):
        _upload(file.parent, S3Url.of(place), [file.name])
    else:
        Path(place).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, Path(place) / file.name)


def _upload(folder: Path, place: S3Url, names: Sequence[str]) -> None:
    from cloudreg.cloud.aws import explaining_aws
    from cloudreg.cloud.s3 import s3_client

    # To make a client takes longer than to send a small file.
    client = s3_client(place.bucket)
    for name in names:
        key = f"{place.key.rstrip('/')}/{name}".lstrip("/")
        with explaining_aws(f"write s3://{place.bucket}/{key}"):
            client.upload_file(str(folder / name), place.bucket, key)
