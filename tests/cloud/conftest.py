"""A user without a past, ssh servers, and moto's EC2."""

import os

import pytest

from aws_server import AwsServer
from ssh_server import SshServer, make_keys


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of a user who has no settings at all."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "CLOUD_", "SSH_"))]:
        monkeypatch.delenv(name)
    # boto3 keeps the first user that it meets.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return folder


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Private keys by their type; each is let in by the servers."""
    return make_keys(tmp_path_factory.mktemp("ssh") / "keys")


@pytest.fixture
def ssh_server(keys, home):
    """An ssh server that runs commands as this user, in this user's home."""
    server = SshServer(keys["rsa"].with_name("allowed"))
    server.env, server.cwd = dict(os.environ), str(home)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def aws_server():
    """Moto's EC2."""
    server = AwsServer()
    yield server
    server.stop()


@pytest.fixture
def ec2(aws_server, home, monkeypatch):
    """A client of moto's EC2, which is also what this user's settings lead to."""
    return aws_server.for_user(monkeypatch)
