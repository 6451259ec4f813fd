"""A bucket behind moto's CDN and firewall: who may read what, and nothing made twice."""

import json
import sys

import pytest

from cloudreg import cli
from cloudreg.cloud.buckets import make_bucket
from cloudreg.cloud.share import share_bucket
from cloudreg.errors import InputError


@pytest.fixture
def aws(ec2, aws_server, monkeypatch, request):
    """Clients of moto's services, and a private bucket of this test's own."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_server.endpoint)
    name = f"bucket-{abs(hash(request.node.name))}"
    make_bucket(name, "eu-west-1")

    class Aws:
        bucket = name
        s3, cdn = boto3.client("s3"), boto3.client("cloudfront")
        waf = boto3.client("wafv2", region_name="us-east-1")

        def distributions(self):
            found = self.cdn.list_distributions()["DistributionList"].get("Items", [])
            return [one for one in found if name in one["Comment"]]

        def config(self):
            return self.cdn.get_distribution_config(Id=self.distributions()[0]["Id"])["DistributionConfig"]

        def allowed(self):
            sets = [one for one in self.waf.list_ip_sets(Scope="CLOUDFRONT")["IPSets"] if name in one["Name"]]
            found = [self.waf.get_ip_set(Name=s["Name"], Scope="CLOUDFRONT", Id=s["Id"])["IPSet"] for s in sets]
            return sorted(address for one in found for address in one["Addresses"])

    return Aws()


def test_the_cdn_and_nobody_else_may_read_the_bucket(aws):
    address = share_bucket(aws.bucket)
    (found,) = aws.distributions()
    assert address == f"https://{found['DomainName']}"
    (statement,) = json.loads(aws.s3.get_bucket_policy(Bucket=aws.bucket)["Policy"])["Statement"]
    assert statement["Principal"] == {"Service": "cloudfront.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"AWS:SourceArn": found["ARN"]}}
    assert (statement["Action"], statement["Resource"]) == ("s3:GetObject", f"arn:aws:s3:::{aws.bucket}/*")
    config = aws.config()
    (origin,) = config["Origins"]["Items"]
    assert origin["DomainName"] == f"{aws.bucket}.s3.eu-west-1.amazonaws.com"
    # Moto forgets that the origin names it; that it is there is all that can be seen.
    controls = aws.cdn.list_origin_access_controls()["OriginAccessControlList"]["Items"]
    assert f"cloudreg-{aws.bucket}" in [one["Name"] for one in controls]
    assert config["DefaultCacheBehavior"]["ViewerProtocolPolicy"] == "redirect-to-https"
    assert config["HttpVersion"] == "http2and3" and config["Enabled"] and not config["WebACLId"]


def test_only_the_networks_that_are_named_get_through_the_firewall(aws):
    share_bucket(aws.bucket, ["203.0.113.7/24", "198.51.100.7", "2001:db8::/32"])
    assert aws.allowed() == ["198.51.100.7/32", "2001:db8::/32", "203.0.113.0/24"]
    (summary,) = [one for one in aws.waf.list_web_acls(Scope="CLOUDFRONT")["WebACLs"] if aws.bucket in one["Name"]]
    assert aws.config()["WebACLId"] == summary["ARN"]
    wall = aws.waf.get_web_acl(Name=summary["Name"], Scope="CLOUDFRONT", Id=summary["Id"])["WebACL"]
    assert wall["DefaultAction"] == {"Block": {}} and [rule["Action"] for rule in wall["Rules"]] == [{"Allow": {}}] * 2


def test_asked_again_it_changes_who_may_look_and_makes_nothing_twice(aws):
    own = {"Sid": "Own", "Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::x/*"}
    policy = {"Version": "2012-10-17", "Statement": [own]}
    aws.s3.put_bucket_policy(Bucket=aws.bucket, Policy=json.dumps(policy))
    address = share_bucket(aws.bucket)
    assert share_bucket(aws.bucket, ["203.0.113.0/24"]) == address
    assert aws.config()["WebACLId"] and aws.allowed() == ["203.0.113.0/24"]
    assert share_bucket(aws.bucket, ["198.51.100.0/24"]) == address
    assert aws.allowed() == ["198.51.100.0/24"] and len(aws.distributions()) == 1
    statements = json.loads(aws.s3.get_bucket_policy(Bucket=aws.bucket)["Policy"])["Statement"]
    assert [statement["Sid"] for statement in statements] == ["Own", "CloudRegShare"]


def test_what_can_not_be_shared_is_refused(aws):
    with pytest.raises(InputError, match=r"expected networks such as 203.0.113.0/24: 'everybody' does not"):
        share_bucket(aws.bucket, ["everybody"])
    with pytest.raises(InputError, match="could not find the bucket no-such-bucket"):
        share_bucket("no-such-bucket")


def test_who_may_look_has_to_be_said(aws, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cloudreg", "aws", "share", aws.bucket, *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
        return 0

    assert call() == call("--public", "--allow", "203.0.113.0/24") == 2
    assert not aws.distributions()
    capsys.readouterr()
    assert call("--allow", "203.0.113.0/24") == 0
    assert capsys.readouterr().out.strip() == f"https://{aws.distributions()[0]['DomainName']}"
