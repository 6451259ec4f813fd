"""Files of a bucket of a real S3 server."""

import json

import pytest

from cloudreg.cloud.s3 import download_file, matching_keys, s3_client, upload_file
from cloudreg.errors import InputError
from cloudreg.io.objects import read_files
from object_store import KEY, READER_KEY, READER_SECRET, SECRET


@pytest.fixture
def bucket(s3_server, home, monkeypatch):
    """A bucket that this user may write to."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return "private"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "log.xml"
    path.write_bytes(b"<xml/>")
    return path


def test_an_uploaded_file_is_found_again(bucket, file):
    for key in ("found/b.xml", "found/a.xml", "found/a.txt", "foundry/c.xml"):
        upload_file(str(file), bucket, key)
    assert list(matching_keys(bucket, "found/")) == ["found/a.txt", "found/a.xml", "found/b.xml"]
    assert list(matching_keys(bucket, "found", ".xml")) == ["found/a.xml", "found/b.xml", "foundry/c.xml"]
    assert list(matching_keys(bucket, suffix="dry/c.xml")) == ["foundry/c.xml"]
    assert list(matching_keys(bucket, "nothing")) == []
    assert read_files(f"s3://{bucket}/found", ["a.xml"]) == {"a.xml": b"<xml/>"}


def test_a_large_file_goes_in_parts(bucket, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 40_000 + b"end")
    upload_file(path, bucket, "large/file")
    assert read_files(f"s3://{bucket}/large", ["file"])["file"] == path.read_bytes()


def test_a_file_comes_back_whole_and_only_once(bucket, tmp_path):
    large, back = tmp_path / "large", tmp_path / "new" / "folder" / "back"
    large.write_bytes(bytes(range(256)) * 10_000)
    upload_file(large, bucket, "back/large")
    client = s3_client(bucket)
    back.parent.mkdir(parents=True)
    # What an earlier call left cut off is fetched again.
    back.write_bytes(b"cut off")
    download_file(client, bucket, "back/large", back)
    assert back.read_bytes() == large.read_bytes() and [p.name for p in back.parent.iterdir()] == ["back"]
    time = back.stat().st_mtime_ns
    download_file(client, bucket, "back/large", back)
    assert back.stat().st_mtime_ns == time
    with pytest.raises(InputError, match=f"could not read s3://{bucket}/back/none"):
        download_file(client, bucket, "back/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_secrets_file_of_cloudvolume_opens_the_bucket(bucket, file, home, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=f"could not write s3://{bucket}/secret/file"):
        upload_file(file, bucket, "secret/file")
    secrets = home / ".cloudvolume" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "aws-secret.json").write_text(json.dumps({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}))
    upload_file(file, bucket, "secret/file")
    assert list(matching_keys(bucket, "secret/")) == ["secret/file"]


def test_a_profile_opens_the_bucket(bucket, file, home, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(f"[lab]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    upload_file(file, bucket, "profile/file")
    assert list(matching_keys(bucket, "profile/")) == ["profile/file"]


def test_what_can_not_be_uploaded_is_said_in_one_line(bucket, file, monkeypatch):
    with pytest.raises(InputError, match="expected a file at /nowhere to upload, got none"):
        upload_file("/nowhere", bucket, "key")
    with pytest.raises(InputError, match=r"could not write s3://no-such/key: .*bucket does not exist"):
        upload_file(file, "no-such", "key")
    with pytest.raises(InputError, match="expected a bucket named no-such"):
        list(matching_keys("no-such"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    with pytest.raises(InputError, match=f"could not write s3://{bucket}/key: access is denied"):
        upload_file(file, bucket, "key")
