"""A private bucket shown to some networks, or to everybody: Amazon's CDN before it, and a firewall before that.

What is made has the bucket's name in its own, so that asking again finds it, and changes only who may look.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from typing import Any

from cloudreg.cloud.aws import aws_client, explaining_aws
from cloudreg.cloud.s3 import s3_client
from cloudreg.errors import InputError

# Of the policies that AWS manages: keep what was read, and answer browsers' cross-origin questions.
_CACHING_OPTIMIZED = "658327ea-f89d-4fab-a63d-7e88639e58f6"
_CORS_WITH_PREFLIGHT = "5cc3b908-e619-4b99-88e5-2cf7f45965bd"
_STATEMENT = "CloudRegShare"
_QUIET = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False}


def share_bucket(name: str, allow: Sequence[str] = ()) -> str:
    """Let a bucket be read through Amazon's CDN (CloudFront), by HTTP/2 and HTTP/3.

    The bucket itself stays private: only the CDN may read it.

    Parameters
    ----------
    name
        Of the bucket.
    allow
        Networks that may look, such as ``"203.0.113.0/24"``, by a firewall (WAF); without any, everybody who knows
        the address may, or those whom an earlier call allowed.

    Returns
    -------
    str
        Address that takes the place of ``s3://name``; it works after some minutes.

    Raises
    ------
    InputError
        If a network is none, there is no such bucket, or the credentials do not allow it.
    """
    networks = _parsed(allow)
    bucket = s3_client(name)
    with explaining_aws(f"find the bucket {name}"):
        region = bucket.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
    firewall = _firewall(name, networks) if networks else ""
    cdn = aws_client("cloudfront")
    with explaining_aws(f"share the bucket {name}"):
        found = _distribution(cdn, name) or _new_distribution(cdn, name, region, firewall)
        if firewall:
            _put_behind(cdn, found["Id"], firewall)
    with explaining_aws(f"let the CDN read the bucket {name}"):
        _let_read(bucket, name, found["ARN"])
    return f"https://{found['DomainName']}"


def _parsed(allow: Sequence[str]) -> list[str]:
    try:
        return [str(ipaddress.ip_network(text.strip(), strict=False)) for text in allow]
    except ValueError as error:
        raise InputError(f"expected networks such as 203.0.113.0/24: {error}") from error


def _firewall(name: str, networks: Sequence[str]) -> str:
    """Make a firewall that lets only some networks in, or bring it up to date; return what AWS calls it."""
    client = aws_client("wafv2", "us-east-1")  # where all firewalls of CDNs are
    rules = []
    with explaining_aws(f"make a firewall for the bucket {name}"):
        for priority, version in enumerate((4, 6)):
            addresses = [text for text in networks if ipaddress.ip_network(text).version == version]
            title = f"cloudreg-{name}-ipv{version}"
            arn = _ip_set(client, title, version, addresses)
            rules.append(
                {
                    "Name": title,
                    "Priority": priority,
                    "Statement": {"IPSetReferenceStatement": {"ARN": arn}},
                    "Action": {"Allow": {}},
                    "VisibilityConfig": {**_QUIET, "MetricName": title},
                }
            )
        title = f"cloudreg-{name}"
        present = client.list_web_acls(Scope="CLOUDFRONT", Limit=100)["WebACLs"]
        for one in present:
            if one["Name"] == title:
                return str(one["ARN"])
        made = client.create_web_acl(
            Name=title,
            Scope="CLOUDFRONT",
            DefaultAction={"Block": {}},
            Rules=rules,
            VisibilityConfig={**_QUIET, "MetricName": title},
        )
        return str(made["Summary"]["ARN"])


def _ip_set(client: Any, title: str, version: int, addresses: Sequence[str]) -> str:
    for one in client.list_ip_sets(Scope="CLOUDFRONT", Limit=100)["IPSets"]:
        if one["Name"] == title:
            key = {"Name": title, "Scope": "CLOUDFRONT", "Id": one["Id"]}
            lock = client.get_ip_set(**key)["LockToken"]
            client.update_ip_set(**key, Addresses=addresses, LockToken=lock)
            return str(one["ARN"])
    made = client.create_ip_set(Name=title, Scope="CLOUDFRONT", IPAddressVersion=f"IPV{version}", Addresses=addresses)
    return str(made["Summary"]["ARN"])


def _distribution(cdn: Any, name: str) -> dict[str, Any] | None:
    for page in cdn.get_paginator("list_distributions").paginate():
        for one in page["DistributionList"].get("Items", ()):
            if one["Comment"] == _comment(name):
                return dict(one)
    return None


def _new_distribution(cdn: Any, name: str, region: str, firewall: str) -> dict[str, Any]:
    title = f"cloudreg-{name}"
    controls = cdn.list_origin_access_controls(MaxItems="100")["OriginAccessControlList"].get("Items", ())
    identity = next((one["Id"] for one in controls if one["Name"] == title), None)
    if identity is None:
        made = cdn.create_origin_access_control(
            OriginAccessControlConfig={
                "Name": title,
                "SigningProtocol": "sigv4",
                "SigningBehavior": "always",
                "OriginAccessControlOriginType": "s3",
            }
        )
        identity = made["OriginAccessControl"]["Id"]
    methods = ["GET", "HEAD", "OPTIONS"]
    origin = {
        "Id": name,
        "DomainName": f"{name}.s3.{region}.amazonaws.com",
        "OriginAccessControlId": identity,
        "S3OriginConfig": {"OriginAccessIdentity": ""},
    }
    behaviour = {
        "TargetOriginId": name,
        "ViewerProtocolPolicy": "redirect-to-https",
        "AllowedMethods": {"Quantity": 3, "Items": methods, "CachedMethods": {"Quantity": 2, "Items": methods[:2]}},
        "CachePolicyId": _CACHING_OPTIMIZED,
        "ResponseHeadersPolicyId": _CORS_WITH_PREFLIGHT,
        "Compress": True,
    }
    made = cdn.create_distribution(
        DistributionConfig={
            "CallerReference": title,
            "Comment": _comment(name),
            "Enabled": True,
            "HttpVersion": "http2and3",
            "IsIPV6Enabled": True,
            "Origins": {"Quantity": 1, "Items": [origin]},
            "DefaultCacheBehavior": behaviour,
            "WebACLId": firewall,
        }
    )
    return dict(made["Distribution"])


def _put_behind(cdn: Any, identity: str, firewall: str) -> None:
    """Put a distribution that was open, or behind another firewall, behind this one."""
    answer = cdn.get_distribution_config(Id=identity)
    if answer["DistributionConfig"].get("WebACLId") != firewall:
        config = {**answer["DistributionConfig"], "WebACLId": firewall}
        cdn.update_distribution(Id=identity, DistributionConfig=config, IfMatch=answer["ETag"])


def _let_read(bucket: Any, name: str, reader: str) -> None:
    """Add to the bucket's policy, in which all else stays, that the distribution may read it."""
    from botocore.exceptions import ClientError

    try:
        policy = json.loads(bucket.get_bucket_policy(Bucket=name)["Policy"])
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucketPolicy":
            raise
        policy = {"Version": "2012-10-17", "Statement": []}
    ours = {
        "Sid": _STATEMENT,
        "Effect": "Allow",
        "Principal": {"Service": "cloudfront.amazonaws.com"},
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/*",
        "Condition": {"StringEquals": {"AWS:SourceArn": reader}},
    }
    others = [statement for statement in policy["Statement"] if statement.get("Sid") != _STATEMENT]
    bucket.put_bucket_policy(Bucket=name, Policy=json.dumps({**policy, "Statement": [*others, ours]}))


def _comment(name: str) -> str:
    return f"CloudReg: bucket {name}"
