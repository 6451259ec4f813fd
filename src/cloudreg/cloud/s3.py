"""Files of buckets: their names, and files brought there."""

from __future__ import annotations

import configparser
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudreg.cloud.aws import aws_session, explaining_aws
from cloudreg.errors import InputError
from cloudreg.io.credentials import S3Access
from cloudreg.io.objects import list_files

_COPIED_BYTES = 2**20


def matching_keys(bucket: str, prefix: str = "", suffix: str = "") -> Iterator[str]:
    """Find files of a bucket by their names.

    Parameters
    ----------
    bucket
        Name of the bucket.
    prefix, suffix
        How the keys start and end.

    Yields
    ------
    str
        Keys, sorted.

    Raises
    ------
    InputError
        If there is no such bucket or it may not be read.
    """
    for key in list_files(f"s3://{bucket}", prefix):
        if key.endswith(suffix):
            yield key


def upload_file(local_path: str | Path, s3_bucket: str, s3_key: str) -> None:
    """Copy a file into a bucket, a large one in parts.

    Raises
    ------
    InputError
        If there is no such file or bucket, or it may not be written to.
    StoreUnreachableError
        If the server gives no answer.
    """
    path = Path(local_path)
    if not path.is_file():
        raise InputError(f"expected a file at {path} to upload, got none: check the path")
    client = s3_client(s3_bucket)
    from boto3.exceptions import S3UploadFailedError

    doing = f"write s3://{s3_bucket}/{s3_key}"
    with explaining_aws(doing):
        try:
            client.upload_file(str(path), s3_bucket, s3_key)
        except S3UploadFailedError as error:
            raise error.__context__ or error from None


def download_file(client: Any, s3_bucket: str, s3_key: str, local_path: str | Path) -> None:
    """Copy a file out of a bucket, unless one of its size is here already; it appears under its name when it is whole.

    Parameters
    ----------
    client
        Of `s3_client`: one for many files, because it takes longer to make than a small file to bring.
    s3_bucket, s3_key
        Where the file lies.
    local_path
        Where it goes; folders are made.

    Raises
    ------
    InputError
        If there is no such file or bucket, or it may not be read.
    StoreUnreachableError
        If the server gives no answer.
    """
    path = Path(local_path)
    with explaining_aws(f"read s3://{s3_bucket}/{s3_key}"):
        answer = client.get_object(Bucket=s3_bucket, Key=s3_key)
        with answer["Body"] as body:
            if path.exists() and path.stat().st_size == int(answer["ContentLength"]):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            with part.open("wb") as file:
                shutil.copyfileobj(body, file, _COPIED_BYTES)
    part.replace(path)


def s3_client(bucket: str) -> Any:
    """Return boto3's client with the credentials, server and region that `cloudreg.io` uses for a bucket."""
    session = aws_session()
    from botocore import UNSIGNED
    from botocore.config import Config

    access = S3Access.of(bucket)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 8},
        signature_version=UNSIGNED if access.anonymous else None,
    )
    with explaining_aws(f"reach the bucket {bucket}"):
        return session.client(
            "s3", endpoint_url=access.endpoint, region_name=access.region, config=config, **_keys(access)
        )


def _keys(access: S3Access) -> dict[str, str]:
    """Return the keys of a credentials file: of CloudVolume's, boto3 knows nothing."""
    who = dict(access.credentials)
    parser = configparser.RawConfigParser()
    if who["type"] == "profile":
        parser.read(who["credentials_file"])
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    profile = who.get("profile", "")
    return {name: parser.get(profile, name) for name in names if parser.has_option(profile, name)}
