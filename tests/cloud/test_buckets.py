"""Buckets of moto's S3: closed, and open to browsers."""

import pytest

from cloudreg.cloud.buckets import make_bucket
from cloudreg.errors import InputError


@pytest.fixture
def s3(ec2, aws_server, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", aws_server.endpoint)
    return boto3.client("s3")


def test_a_new_bucket_is_private_and_readable_by_browsers(s3):
    assert make_bucket("new-bucket") == "us-east-1"
    assert all(
        s3.get_public_access_block(Bucket="new-bucket")["PublicAccessBlockConfiguration"][name]
        for name in ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    )
    (rule,) = s3.get_bucket_cors(Bucket="new-bucket")["CORSRules"]
    assert rule["AllowedMethods"] == ["GET", "HEAD"] and rule["AllowedOrigins"] == ["*"]
    assert "Content-Range" in rule["ExposeHeaders"]


def test_it_lies_where_it_is_wanted(s3):
    assert make_bucket("far-bucket", "eu-central-1") == "eu-central-1"


def test_what_is_there_stays_and_nothing_is_added_twice(s3):
    s3.create_bucket(Bucket="old-bucket")
    own = {"AllowedMethods": ["PUT"], "AllowedOrigins": ["https://lab.example"]}
    s3.put_bucket_cors(Bucket="old-bucket", CORSConfiguration={"CORSRules": [own]})
    make_bucket("old-bucket")
    make_bucket("old-bucket")
    rules = s3.get_bucket_cors(Bucket="old-bucket")["CORSRules"]
    assert [rule["AllowedMethods"] for rule in rules] == [["PUT"], ["GET", "HEAD"]]


def test_a_name_that_can_not_be_one_is_refused(s3):
    with pytest.raises(InputError, match="could not make the bucket xy"):
        make_bucket("xy")
