"""A bucket for volumes: made private, with the one setting that viewers in browsers need."""

from __future__ import annotations

from typing import Any

from cloudreg.cloud.aws import explaining_aws
from cloudreg.cloud.s3 import s3_client
from cloudreg.errors import InputError

_BROWSERS = {
    "AllowedMethods": ["GET", "HEAD"],
    "AllowedOrigins": ["*"],
    "AllowedHeaders": ["*"],  # viewers ask for ranges of bytes
    "ExposeHeaders": ["Content-Range", "Content-Length", "Accept-Ranges", "ETag"],
    "MaxAgeSeconds": 3000,
}


def make_bucket(name: str, region: str | None = None) -> str:
    """Make a bucket, or bring one of one's own into the same state.

    It is closed to the public, and answers browsers that show its volumes (cross-origin requests). Rules for such
    requests that are there already stay.

    Parameters
    ----------
    name
        Unique in the world; without ``s3://``.
    region
        Where it lies, ``AWS_REGION`` by default: near to those who look at it.

    Returns
    -------
    str
        Region that it lies in.

    Raises
    ------
    InputError
        If the name is taken by somebody else, or can't be one.
    """
    client = s3_client(name)
    region = region or client.meta.region_name
    place = {} if region in (None, "aws-global", "us-east-1") else {"LocationConstraint": region}
    with explaining_aws(f"make the bucket {name}"):
        try:
            client.create_bucket(Bucket=name, **({"CreateBucketConfiguration": place} if place else {}))
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except client.exceptions.BucketAlreadyExists as error:
            raise InputError(f"expected a new name for a bucket, {name} is taken: choose another") from error
    with explaining_aws(f"close the bucket {name} to the public"):
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        client.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    with explaining_aws(f"let browsers read the bucket {name}"):
        rules = _rules(client, name)
        if _BROWSERS not in rules:
            client.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [*rules, _BROWSERS]})
        return str(client.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1")


def _rules(client: Any, name: str) -> list[dict[str, Any]]:
    from botocore.exceptions import ClientError

    try:
        rules: list[dict[str, Any]] = client.get_bucket_cors(Bucket=name)["CORSRules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchCORSConfiguration":
            raise
        return []
    return rules
