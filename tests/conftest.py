"""What every test may use."""

import os
import sys
from pathlib import Path

import pytest

from cloudreg import cli
from cloudreg.execution import Engine, progress
from object_store import KEY, SECRET, GoogleServer, S3Server

_LONG = {"test_clusters.py", "test_pipeline.py", "test_fit.py", "test_register.py", "test_cli.py", "test_estimate.py"}
_LONG |= {"test_gpu.py", "test_transfer.py", "test_whole_run.py"}
"""Files that take minutes. They begin first, so that at the end no process waits long for the others."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def test_data() -> Path:
    """The folder of real volumes; skips where it is absent."""
    folder = Path(os.environ.get("CLOUDREG_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}: set CLOUDREG_TEST_DATA")
    return folder


@pytest.fixture
def engine():
    """Two threads and a fixed memory budget."""
    with Engine(workers=2, memory="1GB") as running:
        yield running


@pytest.fixture
def cloudreg(monkeypatch, capsys):
    """Run a command line in this process; return exit code, standard output and standard error."""
    # The command line switches progress on for good; the tests that follow must find it off.
    monkeypatch.setattr(progress, "_console", None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cloudreg", *(str(word) for word in words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def refused(cloudreg):
    """Run a command line that must be refused; return its one line."""

    def call(*words):
        code, _, err = cloudreg(*words)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, err
        assert len(lines) == 1, err
        assert err.endswith(lines[0] + "\n")
        assert "Traceback" not in err
        return lines[0]

    return call


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server, killed at the end."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def google_server(tmp_path_factory):
    """A server like Google's store, killed at the end."""
    server = GoogleServer(tmp_path_factory.mktemp("google"))
    yield server
    server.kill()


@pytest.fixture
def google(google_server, monkeypatch, tmp_path):
    """The server as Google's own; nothing of the real user is looked at."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", google_server.endpoint)
    return google_server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """The server as this user's one, with the right to write; nothing of the real user is looked at."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "CLOUD_"))]:
        monkeypatch.delenv(name)
    # boto3 keeps the first user that it meets.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server
