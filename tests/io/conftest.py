"""The same examples each time, however slow the machine; and an S3 server."""

import os

import pytest
from hypothesis import settings

from object_store import KEY, SECRET, S3Server

settings.register_profile("cloudreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("cloudreg")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server, killed at the end."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """The server as this user's one, with the right to write; nothing of the real user is looked at."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "CLOUD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server
