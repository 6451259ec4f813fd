"""The 2021 modules, imported with their warning expected; and an S3 server."""

import importlib
import os
import warnings

import pytest

from object_store import KEY, SECRET, S3Server


@pytest.fixture(scope="session")
def legacy():
    """Imports a module of ``cloudreg.scripts``, whose warning is tested elsewhere."""

    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(f"cloudreg.scripts.{name}")

    return load


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
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server
